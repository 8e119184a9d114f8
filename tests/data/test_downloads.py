"""Downloads from a local server, and CIFAR-100 in each form that people have it in."""

import dataclasses
import hashlib
import json
import pickle
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR100 as TORCHVISION

from cl_clipfit import DataRequest, UserError
from cl_clipfit.cli.app import main
from cl_clipfit.config.options import Options
from cl_clipfit.data.fetch import download
from cl_clipfit.data.formats.cifar import CIFAR100, read_archive, read_unpacked
from cl_clipfit.scenarios import split_cifar100
from tests.support.official import cifar_batch, cifar_files, serve, write_archive

CONTENT = bytes(range(256)) * 12_000  # 3 MB


class Runs:
    """A class whose pickle runs code when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))
    monkeypatch.setenv("CL_CLIPFIT_DATA", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Listener:
    """Keeps what a download tells."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[tuple[str, int, int | None]] = []
        self.request = DataRequest(
            note=self.notes.append, progress=lambda *details: self.steps.append(details)
        )


def fetch(url: str, target: Path) -> Path:
    return download.download(url, target, SHA256, DataRequest())


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_off_download_goes_on(tmp_path: Path, ranges: bool) -> None:
    listener = Listener()
    with serve(CONTENT, cut=(1_500_000, 2_500_000), ranges=ranges) as server:
        target = tmp_path / "new" / "data.bin"
        file = download.download(server.url, target, SHA256, listener.request)
    assert file.read_bytes() == CONTENT
    assert server.ranges == ["", "bytes=1500000-", "bytes=2500000-"]
    assert listener.steps[-1] == ("data.bin", len(CONTENT), len(CONTENT))
    assert listener.notes == ["data.bin: the connection was lost, trying again"] * 2
    assert {path.name for path in file.parent.iterdir()} <= {"data.bin", "data.bin.lock"}


def test_an_earlier_part_is_continued_and_a_wrong_one_dropped(tmp_path: Path) -> None:
    part = tmp_path / "data.bin.part"
    part.write_bytes(CONTENT[:1000])
    with serve(CONTENT) as server:
        file = fetch(server.url, tmp_path / "data.bin")
        assert server.ranges == ["bytes=1000-"]
        assert file.read_bytes() == CONTENT
        file.unlink()
        part.write_bytes(CONTENT + b"more")  # longer than the file
        assert fetch(server.url, file).read_bytes() == CONTENT
        file.unlink()
        part.write_bytes(b"another file" + CONTENT[12:1000])  # found out by its checksum
        assert fetch(server.url, file).read_bytes() == CONTENT
        assert server.ranges[-2:] == ["bytes=1000-", ""]
        file.unlink()
        part.write_bytes(CONTENT)  # whole, but never renamed
        assert fetch(server.url, file).read_bytes() == CONTENT
        requests = len(server.ranges)
        fetch(server.url, file)
    assert len(server.ranges) == requests  # what is there is not fetched again


def refusal(content: bytes, target: Path, **options: Any) -> tuple[str, int]:
    """Return the message of a download that fails, and the number of requests."""
    with serve(content, **options) as server, pytest.raises(UserError) as caught:
        fetch(server.url, target)
    assert not target.exists()
    message = str(caught.value)
    assert server.url in message
    assert str(target) in message
    return message, len(server.ranges)


def test_a_busy_server_is_asked_again_and_a_refusal_is_told(tmp_path: Path) -> None:
    with serve(CONTENT, status=(503, 429)) as server:
        assert fetch(server.url, tmp_path / "a").read_bytes() == CONTENT
        assert len(server.ranges) == 3
    message, requests = refusal(CONTENT, tmp_path / "b", status=(404,) * 9)
    assert "404" in message
    assert requests == 1
    assert "416" in refusal(CONTENT, tmp_path / "c", status=(503, 503, 416))[0]
    assert "connection was lost" in refusal(CONTENT, tmp_path / "d", cut=(0,) * 9)[0]
    with serve(CONTENT) as server:
        server.stop()
        with pytest.raises(UserError, match="refused"):
            fetch(server.url, tmp_path / "e")


def test_another_file_is_never_kept(tmp_path: Path) -> None:
    message, requests = refusal(b"<html>Log in to this network</html>", tmp_path / "data.bin")
    assert "checksum is wrong" in message
    assert requests == 2
    assert {path.name for path in tmp_path.iterdir()} <= {"data.bin.lock"}


def test_a_disk_that_cannot_be_written_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with serve(CONTENT) as server:
        with pytest.raises(UserError, match="cannot write"):
            fetch(server.url, tmp_path / "file" / "data")
        (tmp_path / "full.part").symlink_to("/dev/full")
        with pytest.raises(UserError, match=r"cannot write .*full: No space left"):
            fetch(server.url, tmp_path / "full")
        assert len(server.ranges) == 1


def test_two_processes_fetch_a_file_once(tmp_path: Path) -> None:
    with serve(CONTENT) as server, ThreadPoolExecutor(4) as pool:
        target = tmp_path / "data.bin"
        files = list(pool.map(lambda _: fetch(server.url, target), range(4)))
    assert {file.read_bytes() for file in files} == {CONTENT}
    assert server.ranges == [""]


def official(path: Path, files: dict[str, bytes]) -> Any:
    """Return the format with the checksums of these files, as if they were the official ones."""
    archive = write_archive(path, files)
    md5 = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
    return dataclasses.replace(
        CIFAR100,
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        train={"train": md5["train"]},
        test={"test": md5["test"]},
        meta={"meta": md5["meta"]},
    )


def unpack(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_checksums_and_location_are_those_torchvision_publishes() -> None:
    assert TORCHVISION.url == CIFAR100.url
    assert TORCHVISION.base_folder == CIFAR100.folder
    assert CIFAR100.train == dict(TORCHVISION.train_list)
    assert CIFAR100.test == dict(TORCHVISION.test_list)
    assert CIFAR100.meta == {TORCHVISION.meta["filename"]: TORCHVISION.meta["md5"]}
    assert CIFAR100.names_key == TORCHVISION.meta["key"]
    assert len(set(CIFAR100.names)) == 100
    assert list(CIFAR100.names) == sorted(CIFAR100.names)


def test_archive_folder_and_torchvision_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = cifar_files(train=2)
    form = official(tmp_path / "cifar.tar.gz", files)
    folder = unpack(tmp_path / "cifar-100-python", files)
    packed, unpacked = read_archive(tmp_path / "cifar.tar.gz", form), read_unpacked(folder, form)
    assert packed.verified
    assert unpacked.verified
    assert packed.names == unpacked.names == CIFAR100.names
    monkeypatch.setattr(TORCHVISION, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a: True)
    for part, train in (("train", True), ("test", False)):
        reference = TORCHVISION(str(tmp_path), train=train)
        for data in (packed, unpacked):
            images = getattr(data, part)
            assert np.array_equal(images.images.permute(0, 2, 3, 1).numpy(), reference.data)
            assert images.labels.tolist() == reference.targets


def assert_refused(tmp_path: Path, message: str, **changes: bytes) -> None:
    files = cifar_files(train=1) | changes
    archive = write_archive(tmp_path / "a.tar.gz", {n: d for n, d in files.items() if d})
    with pytest.raises(UserError, match=message):
        read_archive(archive, CIFAR100, unverified=True)


class Built:
    """Pickles as a call of any function, with any state put on what it returns."""

    def __init__(self, *recipe: Any) -> None:
        self.recipe = recipe

    def __reduce__(self) -> tuple[Any, ...]:
        return self.recipe


def test_forged_arrays_are_refused(tmp_path: Path) -> None:
    """NumPy's own constructors would make arrays over addresses that the file names."""
    batch = cifar_batch(1, 0)
    view = Built(np.ndarray, ((100,), np.dtype("u1"), b"A" * 100))
    assert_refused(tmp_path, "over memory", train=pickle.dumps(batch | {"fine_labels": view}))
    pointers = Built(np.ndarray, ((100,), np.dtype("O"), b"A" * 800))
    assert_refused(
        tmp_path, "an array of O8", train=pickle.dumps(batch | {"fine_labels": pointers})
    )
    huge = Built(np.ndarray, ((2**40,),))
    assert_refused(tmp_path, "over memory", train=pickle.dumps(batch | {"data": huge}))
    objects = np.array([None] * 100, dtype=object)
    assert_refused(tmp_path, "an array of", train=pickle.dumps(batch | {"fine_labels": objects}))
    state = b"cnumpy\ndtype\n(dS'a'\nS'b'\nsb."  # BUILD on the function itself
    assert_refused(tmp_path, "asks to change a function", train=state)
    short = pickle.dumps(batch | {"data": batch["data"][:50]}).replace(b"M\x00\x0c", b"M\x01\x0c")
    assert_refused(tmp_path, "cannot reshape", train=short)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, "asks to run", train=pickle.dumps(Runs()))
    assert_refused(tmp_path, "asks to run", meta=pickle.dumps({"a": [Runs()]}, protocol=2))
    assert_refused(tmp_path, "asks to run builtins.eval", test=b"cbuiltins\neval\n(S'1'\ntR.")
    assert not Path("executed").exists()


def test_damaged_files_are_explained(tmp_path: Path) -> None:
    good = cifar_batch(1, 0)

    def dump(**changes: Any) -> bytes:
        return pickle.dumps({k: v for k, v in (good | changes).items() if v is not None})

    assert_refused(tmp_path, "not a CIFAR batch", train=b"nonsense")
    assert_refused(tmp_path, "not a CIFAR batch", train=pickle.dumps(3))
    assert_refused(tmp_path, "'fine_labels' is missing", train=dump(fine_labels=None))
    assert_refused(tmp_path, "expected uint8", train=dump(data=good["data"].astype(np.float32)))
    assert_refused(tmp_path, "must be uint8", train=dump(data=[1, 2]))
    for labels in (5, {}, "text", [True] * 100):
        assert_refused(tmp_path, "integers", train=dump(fine_labels=labels))
    assert_refused(tmp_path, "must be uint8", train=dump(data=good["data"][:, :100]))
    assert_refused(tmp_path, "100 integers from 0 to 99", train=dump(fine_labels=[100] * 100))
    assert_refused(tmp_path, "integers", train=dump(fine_labels=[0]))
    assert_refused(tmp_path, "100 class names", meta=pickle.dumps({"fine_label_names": ["a"]}))
    for name in ("", None, ["a"]):
        names = pickle.dumps({"fine_label_names": [name] * 100})
        assert_refused(tmp_path, "holds a name that is not text", meta=names)
    assert_refused(tmp_path, "does not contain cifar-100-python/test", test=b"")
    whole = write_archive(tmp_path / "b.tar.gz", cifar_files(train=1)).read_bytes()
    for size in (0, 10, len(whole) // 2):
        (tmp_path / "b.tar.gz").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"is damaged or incomplete|not a CIFAR batch"):
            read_archive(tmp_path / "b.tar.gz", CIFAR100, unverified=True)


def test_other_files_than_the_official_ones_must_be_accepted(tmp_path: Path) -> None:
    files = cifar_files(train=1)
    archive = write_archive(tmp_path / "a.tar.gz", files)
    with pytest.raises(UserError, match=r"not the official CIFAR-100 archive.*--unverified-data"):
        read_archive(archive, CIFAR100)
    assert not read_archive(archive, CIFAR100, unverified=True).verified
    folder = unpack(tmp_path / "unpacked", files)
    form = official(tmp_path / "b.tar.gz", files)
    assert read_unpacked(folder, form).verified
    for name in files:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole + b" ")
        with pytest.raises(UserError, match=rf"{name} is not the official file.*--unverified-data"):
            read_unpacked(folder, form)
        assert not read_unpacked(folder, form, unverified=True).verified
        (folder / name).write_bytes(whole)


def image_folders(root: Path, classes: tuple[str, ...]) -> Path:
    for part in ("train", "test"):
        for label, name in enumerate(classes):
            folder = root / part / name.replace(" ", "_")
            folder.mkdir(parents=True)
            colour = (label, 2 * label, 100 if part == "train" else 0)
            Image.new("RGB", (32, 32), colour).save(folder / "1.png")
    return root


def test_every_form_of_data_dir(tmp_path: Path) -> None:
    files = cifar_files(train=1)
    archive = write_archive(tmp_path / "cifar-100-python.tar.gz", files)
    unpacked = unpack(tmp_path / "root" / "cifar-100-python", files)
    images = image_folders(tmp_path / "images", CIFAR100.names)
    forms = {
        archive: "archive", tmp_path: "archive", unpacked: "folder", unpacked.parent: "folder",
        images: "images",
    }  # fmt: skip
    for path, kind in forms.items():
        source = split_cifar100.load(Options(), DataRequest(path, unverified=True))
        assert source.origin == {"kind": kind, "verified": False}
        assert source.class_names == CIFAR100.names
        assert len(source.train) == len(source.test) == 100
    assert source.train.images[7, :, 0, 0].tolist() == [7, 14, 100]
    assert source.train.labels.tolist() == list(range(100))


def test_images_of_unknown_classes_or_sizes_are_named(tmp_path: Path) -> None:
    image_folders(tmp_path / "a", ("aple",))
    with pytest.raises(UserError, match=r"aple.*Did you mean 'apple'"):
        split_cifar100.load(Options(), DataRequest(tmp_path / "a"))
    b = image_folders(tmp_path / "b", ("apple", "bear"))
    Image.new("RGB", (20, 10)).save(b / "train" / "bear" / "2.png")
    with pytest.raises(UserError, match=r"2\.png has 20x10 pixels, the others have 32x32"):
        split_cifar100.load(Options(), DataRequest(b))
    (b / "train" / "bear" / "2.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be read as an image"):
        split_cifar100.load(Options(), DataRequest(b))
    for part in ("train", "test"):
        (tmp_path / "c" / part).mkdir(parents=True)
    with pytest.raises(UserError, match="holds no images"):
        split_cifar100.load(Options(), DataRequest(tmp_path / "c"))


COMMAND = ["--scenario", "split-cifar100", "--output", "runs"]


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*COMMAND, *arguments]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert not Path("runs").exists()
    (line,) = [text for text in printed.splitlines() if text.startswith("error: ")]
    return line


def test_without_network_the_way_out_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(*arguments: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    line = failure(capsys)
    assert CIFAR100.url in line
    assert str(tmp_path / "cache" / "cifar-100-python.tar.gz") in line
    assert "python run.py --scenario split-cifar100 --data-dir" in line
    assert "--model ViT-B-16-quickgelu:openai:" in line


def test_a_folder_without_the_data_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    line = failure(capsys, "--data-dir", "empty")
    assert "does not hold CIFAR-100" in line
    assert "cifar-100-python.tar.gz" in line


def test_split_cifar100_runs_on_a_small_archive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_archive(tmp_path / "cifar-100-python.tar.gz", cifar_files(train=3))
    arguments = [
        "--data-dir", ".", "--model", "mini", "--tasks", "2", "--shots", "2", "--epochs", "1",
        "--strategy", "clipfit", "--probe", "glyph-letters",
        "--template", "a photo of a {}.", "--template", "a drawing of a {}.",
    ]  # fmt: skip
    assert "--unverified-data" in failure(capsys, *arguments)
    assert main([*COMMAND, *arguments, "--unverified-data"]) == 0
    assert "not the official files" in capsys.readouterr().err
    (file,) = Path("runs").glob("*/result.json")
    result = json.loads(file.read_text())
    assert result["data"]["verified"] is False
    assert result["templates"] == ["a photo of a {}.", "a drawing of a {}."]
    assert result["class_order"][:5] == [87, 0, 52, 58, 44]
    assert result["tasks"][0]["classes"][:2] == ["television", "apple"]
    assert [task["train_samples"] for task in result["tasks"]] == [100, 100]
    assert result["recipe"]["augmentation"] == "crop-flip"
