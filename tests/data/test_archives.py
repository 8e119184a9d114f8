"""Archives good, damaged and hostile; data sets found, fetched, verified and kept."""

import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cl_clipfit import DataRequest, UserError
from cl_clipfit.data.fetch import download, unpacking
from cl_clipfit.data.fetch.archives import Archive, Located, obtain
from cl_clipfit.errors import program
from tests.support.archives import unpack
from tests.support.official import serve

FILES = {"set/a.txt": b"a" * 3_000_000, "set/deep/er/b.bin": os.urandom(70_000), "top": b""}
KINDS = ("tar", "tar.gz", "tar.bz2", "tar.xz", "zip")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))
    monkeypatch.setenv("CL_CLIPFIT_DATA", str(tmp_path / "cache"))


def pack(file: Path, files: dict[str, bytes]) -> Path:
    """Write an archive of the kind that the name says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, data in files.items():
                zipped.writestr(name, data)
        return file
    mode = "w" if file.suffix == ".tar" else f"w:{file.suffix[1:]}"
    with tarfile.open(file, mode) as tar:
        for name, data in files.items():
            add(tar, name, data)
    return file


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **about: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in about.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def refused(archive: Path, message: str, **options: int) -> None:
    target = archive.parent / "out"
    with pytest.raises(UserError, match=message) as caught:
        unpack(archive, target, **options)
    assert "\n" not in str(caught.value)
    assert str(archive) in str(caught.value)
    assert not target.exists()
    assert not list(archive.parent.glob(".*")), "half-made folders stay"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_out_as_it_went_in(tmp_path: Path, kind: str) -> None:
    archive = pack(tmp_path / f"x.{kind}", FILES)
    steps: list[tuple[str, int, int | None]] = []
    unpack(archive, tmp_path / "new" / "out", progress=lambda *step: steps.append(step))
    assert contents(tmp_path / "new" / "out") == FILES
    size = archive.stat().st_size
    assert steps[-1] == (f"unpacking x.{kind}", size, size)
    assert all(done < size for _, done, _ in steps[:-1])
    mode = stat.S_IMODE((tmp_path / "new" / "out").stat().st_mode)
    (tmp_path / "usual").mkdir()
    assert mode == stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"out"}
    archive.rename(tmp_path / "no_suffix")
    unpack(tmp_path / "no_suffix", tmp_path / "again")
    assert contents(tmp_path / "again") == FILES


def test_what_system_tools_write(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    long = "x" * 120 + "/" + "y" * 130
    (folder / long).parent.mkdir()
    (folder / long).write_bytes(b"long name")
    (folder / "empty").mkdir()
    for form in ("gnu", "pax"):
        command = ["tar", f"--format={form}", "-czf", str(tmp_path / "t.tgz"), "-C", str(folder)]
        subprocess.run([*command, "."], check=True)
        unpack(tmp_path / "t.tgz", tmp_path / form)
        assert contents(tmp_path / form) == {**FILES, long: b"long name"}
        assert (tmp_path / form / "empty").is_dir()


def test_gz_of_one_file(tmp_path: Path) -> None:
    (tmp_path / "idx-ubyte.gz").write_bytes(gzip.compress(b"12345" * 1000))
    unpack(tmp_path / "idx-ubyte.gz", tmp_path / "out")
    assert contents(tmp_path / "out") == {"idx-ubyte": b"12345" * 1000}
    shutil.rmtree(tmp_path / "out")
    refused(tmp_path / "idx-ubyte.gz", "holds more than 4,999 bytes", limit_bytes=4999)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(b"12345" * 1000))
    refused(tmp_path / "x.tar.gz", "is damaged or incomplete")


OUTSIDE = ("../x", "a/../../x", "/etc/x", "//x", "..\\x", "C:\\x", "\\x")


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_names_that_leave_the_folder(tmp_path: Path, kind: str, name: str) -> None:
    refused(pack(tmp_path / f"x.{kind}", {"fine": b"1", name: b"2"}), r"(leads )?out(side)? ")
    assert not (tmp_path / "x").exists()


def test_links_and_devices(tmp_path: Path) -> None:
    kinds = {
        "symlink": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "fifo": tarfile.FIFOTYPE,
        "character": tarfile.CHRTYPE, "block": tarfile.BLKTYPE,
    }  # fmt: skip
    for name, kind in kinds.items():
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            add(tar, "fine", b"1")
            add(tar, name, type=kind, linkname="fine")
        refused(tmp_path / "x.tar", f"'{name}' is a link or a device")
    for kind in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as zipped:
            info = zipfile.ZipInfo("link")
            info.external_attr = (kind | 0o777) << 16
            zipped.writestr(info, "/etc/passwd")
        refused(tmp_path / "x.zip", "'link' is a link or a device")


def test_names_that_come_twice(tmp_path: Path) -> None:
    for first, second in (("a", "a"), ("a", "./a"), ("a", "a/b"), ("a/b", "a")):
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            add(tar, first, b"1")
            add(tar, second, b"2")
        refused(tmp_path / "x.tar", "twice")
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as zipped:
            for name in (first, second):
                if name == first == second and name in zipped.namelist():
                    with pytest.warns(UserWarning, match="Duplicate name"):
                        zipped.writestr(name, "2")
                else:
                    zipped.writestr(name, "1")
        refused(tmp_path / "x.zip", "twice")
    with tarfile.open(tmp_path / "y.tar", "w") as tar:  # folders may
        for _ in range(2):
            add(tar, "a", type=tarfile.DIRTYPE)
        add(tar, "a/b", b"1")
    unpack(tmp_path / "y.tar", tmp_path / "y")
    assert contents(tmp_path / "y") == {"a/b": b"1"}


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_bombs_stop(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = pack(tmp_path / f"x.{kind}", {f"{n}": bytes(1_000_000) for n in range(4)})
    refused(bomb, r"more than 3,999,999 bytes or", limit_bytes=3_999_999)
    unpack(bomb, tmp_path / "exact", limit_bytes=4_000_000)
    monkeypatch.setattr(unpacking, "LIMIT_MEMBERS", 3)
    refused(bomb, "or 3 members")


def test_a_declared_size_is_enough_to_stop(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.size = 1 << 40
    (tmp_path / "x.tar").write_bytes(info.tobuf() + bytes(5000))
    refused(tmp_path / "x.tar", "more than 2,000 bytes or", limit_bytes=2000)


def test_bombs_in_headers_and_behind_the_end_stop(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "fine", b"1")
        add(tar, "x", bytes(20 << 20), type=tarfile.GNUTYPE_LONGNAME)  # a name of 20 MB
    refused(tmp_path / "x.tar.gz", "a header of more than 16,777,216 bytes")
    plain = pack(tmp_path / "y.tar", {"a": b"1"}).read_bytes()
    (tmp_path / "y.tar.gz").write_bytes(gzip.compress(plain + bytes(20 << 20)))
    refused(tmp_path / "y.tar.gz", "padding after its end is too large")
    add_sparse = io.BytesIO()
    with tarfile.open(fileobj=add_sparse, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("sparse")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        table = b"9000000\n" + b"0\n" * (10 << 20)  # its map is read line by line
        info.size = len(table)
        tar.addfile(info, io.BytesIO(table))
    (tmp_path / "z.tar").write_bytes(add_sparse.getvalue())
    refused(tmp_path / "z.tar", "a header of more than 16,777,216 bytes")


def test_a_hole_is_not_taken_for_the_end(tmp_path: Path) -> None:
    """As a copy that was broken off leaves it: later members must not be lost in silence."""
    whole = pack(tmp_path / "x.tar", {f"{n}": b"content" for n in range(6)})
    with tarfile.open(whole) as tar:
        headers = [member.offset for member in tar.getmembers()]
    data = whole.read_bytes()
    for offset in headers:
        whole.write_bytes(data[:offset] + bytes(512) + data[offset + 512 :])
        refused(whole, "is damaged or incomplete")


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_told(tmp_path: Path, kind: str) -> None:
    noise = {f"{n}": os.urandom(2000) for n in range(20)}
    archive = pack(tmp_path / f"x.{kind}", noise)
    whole = archive.read_bytes()
    header = 7 * (512 + 2048)  # of a member of the plain tar, where tarfile itself sees the end
    for size in (0, 5, 1000, header, header + 100, len(whole) // 2, len(whole) - 30_000):
        archive.write_bytes(whole[:size])
        refused(archive, "is damaged or incomplete, delete it and download it again")
    where = header + 4 if kind == "tar" else len(whole) // 2
    changed = bytearray(whole)
    changed[where : where + 8] = bytes(byte ^ 255 for byte in whole[where : where + 8])
    archive.write_bytes(changed)
    refused(archive, "is damaged or incomplete")


def test_an_encrypted_zip(tmp_path: Path) -> None:
    data = bytearray(pack(tmp_path / "x.zip", {"a": b"1"}).read_bytes())
    for magic, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(magic) + at] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    refused(tmp_path / "x.zip", "'a' is encrypted")


def test_a_disk_that_cannot_be_written(tmp_path: Path) -> None:
    archive = pack(tmp_path / "x.tar", FILES)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/out"):
        unpack(archive, tmp_path / "file" / "out")
    (tmp_path / "full" / "out").mkdir(parents=True)
    (tmp_path / "full" / "out" / "mine").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*full/out: Directory not empty"):
        unpack(archive, tmp_path / "full" / "out")
    assert contents(tmp_path / "full") == {"out/mine": b""}
    code = (  # a file may have 100 kB: the error of a full disk, but for its number
        "import resource, sys; from pathlib import Path\n"
        "from tests.support.archives import unpack; from cl_clipfit.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: unpack(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except UserError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(archive), str(tmp_path / "new" / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cannot write ")
    assert done.stdout.endswith("a.txt: File too large\n")
    assert not list((tmp_path / "new").iterdir())


# ---- obtain


EXPECTED = ("set/a.txt", "set/deep")


def archive_of(file: Path, url: str = "", algorithm: str = "sha256", **about: str) -> Archive:
    checksum = hashlib.new(algorithm, file.read_bytes()).hexdigest()
    return Archive(url, f"{algorithm}:{checksum}", name=file.name, **about)


def get(archives: list[Archive], data_dir: Path | None = None, **options: bool) -> Located:
    return obtain("my-set", archives, EXPECTED, DataRequest(data_dir, **options), "See the manual")


ROOT = Path("cache", "my-set", "files")


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_downloaded_once_verified_and_kept(tmp_path: Path, algorithm: str) -> None:
    file = pack(tmp_path / "in" / "x.tar.gz", FILES)
    with serve(file.read_bytes()) as server:
        archive = archive_of(file, server.url, algorithm)
        notes: list[str] = []
        for _ in range(2):
            found = obtain("my-set", [archive], EXPECTED, DataRequest(note=notes.append))
            assert found == Located(tmp_path / ROOT, {"kind": "archive", "verified": True})
            assert contents(found.folder) == FILES
        assert notes == []
        assert len(server.ranges) == 1
        (found.folder / "set" / "a.txt").unlink()  # a part is lost: unpacked again
        assert contents(get([archive]).folder) == FILES
        assert len(server.ranges) == 1
        shutil.rmtree(tmp_path / "cache")
        wrong = Archive(server.url, f"{algorithm}:{'0' * 32}", name="x.tar.gz")
        with pytest.raises(UserError, match=r"checksum is wrong.*Download http.*--data-dir PATH"):
            get([wrong])
        assert not (tmp_path / ROOT).exists()


def test_without_a_published_checksum(tmp_path: Path) -> None:
    file = pack(tmp_path / "in" / "x.zip", FILES)
    notes: list[str] = []
    with serve(file.read_bytes()) as server:
        archive = Archive(server.url, "", name="x.zip")
        for _ in range(2):
            found = obtain("my-set", [archive], EXPECTED, DataRequest(note=notes.append))
            assert found.origin == {"kind": "archive", "verified": False}
        assert len(server.ranges) == 1
    assert notes == ["my-set: these files are not verified; results say so"] * 2
    assert Archive("http://host/path/y.zip", "").name == "y.zip"


def test_archives_that_the_user_has(tmp_path: Path) -> None:
    one = pack(tmp_path / "in" / "x.tar", {n: d for n, d in FILES.items() if n != "top"})
    two = pack(tmp_path / "in" / "y.zip", {"top": b"", "more": b"1"})
    archives = [archive_of(one), archive_of(two, into="labels")]
    for given in (one.parent, one, two):
        found = get(archives, given)
        assert found == Located(tmp_path / ROOT, {"kind": "archive", "verified": True})
    assert set(contents(found.folder)) == {
        "set/a.txt", "set/deep/er/b.bin", "labels/top", "labels/more"
    }  # fmt: skip
    assert get(archives).origin["verified"]  # and from now on without --data-dir
    copy = shutil.copytree(one.parent, tmp_path / "copy")
    stamp = (tmp_path / ROOT).stat().st_ino
    assert get(archives, copy).folder.stat().st_ino == stamp  # the same files: not unpacked again
    two.unlink()
    with pytest.raises(
        UserError, match=r"does not hold my-set: expected the archives x.tar, y.zip, or"
    ):
        get(archives, one.parent)
    with pytest.raises(UserError, match=r"y\.zip is missing"):
        get(archives, one.parent)
    with pytest.raises(UserError, match="no such file or folder"):
        get(archives, tmp_path / "nowhere")


def test_other_archives_than_the_official_ones_must_be_accepted(tmp_path: Path) -> None:
    official = archive_of(pack(tmp_path / "official" / "x.tar", FILES))
    other = pack(tmp_path / "in" / "x.tar", {**FILES, "set/a.txt": b"another"})
    with pytest.raises(UserError, match=r"x\.tar is not the official file \(sha256:.*--unverified"):
        get([official], other.parent)
    assert not (tmp_path / ROOT).exists()
    found = get([official], other.parent, unverified=True)
    assert found.origin == {"kind": "archive", "verified": False}
    assert contents(found.folder)["set/a.txt"] == b"another"
    for unverified in (True, False):  # accepted for this file, not for the data set
        with pytest.raises(UserError, match="cannot be downloaded"):
            get([official], unverified=unverified)
    accepted = found.folder
    with pytest.raises(UserError, match="not the official file"):
        get([official], other.parent)
    found = get([official], tmp_path / "official")
    assert found.origin["verified"]
    assert contents(found.folder) == FILES
    assert contents(accepted)["set/a.txt"] == b"another"  # another job may be reading it
    assert get([official], other.parent, unverified=True).folder == accepted
    assert get([official]).folder == found.folder


def test_an_archive_changed_behind_its_time_stamp_is_read_again(tmp_path: Path) -> None:
    file = pack(tmp_path / "in" / "x.tar", FILES)
    official, about = archive_of(file), file.stat()
    assert get([official], file.parent).origin["verified"]
    data = bytearray(file.read_bytes())
    data[600] ^= 1
    file.write_bytes(bytes(data))
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    with pytest.raises(UserError, match="not the official file"):
        get([official], file.parent)


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    file = pack(tmp_path / "in" / "x.tar", FILES)
    left = tmp_path / ROOT.parent / ".files.abc" / "new"
    left.mkdir(parents=True)
    (left / "half.jpg").write_bytes(b"half")
    get([archive_of(file)], file.parent)
    assert sorted(path.name for path in (tmp_path / ROOT).parent.iterdir()) == [".lock", "files"]


def test_the_folder_itself_may_be_named_in_any_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "at" / "set"
    (inner / "deep").mkdir(parents=True)
    (inner / "a.txt").write_text("")
    (tmp_path / "link").symlink_to(inner)
    monkeypatch.chdir(inner)
    archives = [Archive("", "", name="photos.tar.gz", into="")]
    for given in (inner, Path(), tmp_path / "link"):
        assert get(archives, given).folder == tmp_path / "at"


def test_unpacked_folders_at_below_and_above(tmp_path: Path) -> None:
    archives = [Archive("", "", name="photos.tar.gz", into="")]
    for place in ("", "my-set", "photos"):
        root = tmp_path / f"at{place}"
        (root / place / "set" / "deep").mkdir(parents=True)
        (root / place / "set" / "a.txt").write_text("")
        notes: list[str] = []
        found = obtain("my-set", archives, EXPECTED, DataRequest(root, note=notes.append))
        assert found == Located(root / place, {"kind": "folder", "verified": False})
        assert len(notes) == 1
    inner = tmp_path / "at" / "set"
    assert get(archives, inner).folder == tmp_path / "at"
    (tmp_path / "at" / "other").mkdir()
    with pytest.raises(
        UserError, match="other does not hold my-set"
    ):  # its neighbours are not meant
        get(archives, tmp_path / "at" / "other")
    shutil.rmtree(inner / "deep")
    for given in (inner, tmp_path / "at"):
        with pytest.raises(
            UserError, match=r"expected the archives photos.tar.gz, or the unpacked"
        ):
            get(archives, given)


def test_by_hand_without_network_and_wrong_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cache" / "my-set" / "x.tar"
    with pytest.raises(UserError) as caught:
        get([Archive("", "", name="x.tar")])
    assert str(caught.value) == (
        f"my-set: x.tar cannot be downloaded: put it at {place}, or anywhere else. Then run"
        f" offline: {program()} --scenario my-set --data-dir PATH --model"
        " ARCH:TAG:PATH_TO_WEIGHTS. See the manual"
    )
    pack(place, FILES)
    assert contents(get([Archive("", "", name="x.tar")]).folder) == FILES
    with serve(b"") as server:
        server.stop()
        with pytest.raises(
            UserError, match=rf"Download {server.url} .* at {place.parent}/z\.zip, or"
        ):
            get([Archive(server.url, "", name="z.zip")])
    pack(place.with_name("y.tar"), {"set/a.txt": b""})
    with pytest.raises(UserError, match=r"y\.tar: set/deep is missing"):
        get([Archive("", "", name="y.tar")])
    assert contents(tmp_path / ROOT) == FILES  # what was there stays
    assert not list(place.parent.glob(".files*"))
    monkeypatch.setenv("CL_CLIPFIT_DATA", str(place))  # a file, no folder
    with pytest.raises(UserError, match="cannot write"):
        get([Archive("", "", name="x.tar")])


def test_an_interrupted_unpacking_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    file = pack(tmp_path / "in" / "x.tar", FILES)
    archive = archive_of(file)

    def interrupt(label: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        obtain("my-set", [archive], EXPECTED, DataRequest(file, progress=interrupt))
    assert not (tmp_path / ROOT).exists()
    for damage in ("{", "{}", "[]", json.dumps({"archives": [{"name": "x.tar"}]})):
        root = get([archive], file).folder
        (root / ".cl_clipfit.json").write_text(damage)
        (root / "set" / "a.txt").write_bytes(b"half")
        assert contents(get([archive], file).folder) == FILES


def test_two_that_ask_at_once_unpack_once(tmp_path: Path) -> None:
    file = pack(tmp_path / "in" / "x.tar", FILES)
    archive, labels, lock = archive_of(file), [], threading.Lock()

    def progress(label: str, done: int, total: int | None) -> None:
        with lock:
            labels.append((label, done))

    def ask(_: int) -> dict[str, bytes]:
        return contents(
            obtain("my-set", [archive], EXPECTED, DataRequest(file, progress=progress)).folder
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(found == FILES for found in pool.map(ask, range(4)))
    size = file.stat().st_size
    assert labels.count(("unpacking x.tar", size)) == 1
