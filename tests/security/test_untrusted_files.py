"""Untrusted files are harmless: nothing they name is run, no claim of theirs takes memory."""

import io
import json
import os
import pickle
import re
import socket
import struct
import time
import xml.etree.ElementTree
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import yaml
from PIL import Image
from rich.console import Console

from cl_clipfit.bank.store import DeltaBank
from cl_clipfit.cli.app import main
from cl_clipfit.commands.bank import list_bank
from cl_clipfit.config.command import read_config
from cl_clipfit.config.parsing import parse_settings
from cl_clipfit.data.formats.feature_files import read_features
from cl_clipfit.data.formats.imagenet import read_table
from cl_clipfit.data.formats.plain_pickle import PlainUnpickler
from cl_clipfit.data.images.decode import open_image
from cl_clipfit.data.orders import read_tasks
from cl_clipfit.data.source import ImageSet, Source
from cl_clipfit.errors import UserError, printable
from cl_clipfit.report.csv_tables import comparison_csv
from cl_clipfit.report.display import ConsoleDisplay
from cl_clipfit.report.figures import plot_run
from cl_clipfit.report.tables import results_table
from cl_clipfit.storage.files import seal, unseal
from tests.support.banks import make
from tests.support.feature_files import arrays
from tests.support.mischief import (
    LONG_NUMBER,
    NESTED,
    TERABYTES,
    Runs,
    fuzz,
    refused,
    rewrite,
    unicode,
)
from tests.support.tiny import MINE

MARKER = "hf_SecretOfTheUser"
NAMES = (
    "../../x", "/etc/passwd", "<script>alert(1)</script>", "[red]x[/red]", "$x^2$", "=1+1|'cmd'",
    "'\"&amp;", "long " * 2000, "%s {} {0}", "a\\",
)  # fmt: skip
SNEAKY = ("\x1b[2J", "\r", "a\u202eb", "a\x00b", "\u2028", "\x9b2J")


# Features.


def test_arrays_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    file = tmp_path / "f.npz"
    np.savez_compressed(file, **arrays())
    assert len(read_features(file).class_names) == 7

    def huge(name: str, data: bytes) -> bytes:
        return data.replace(b"(42, 5)", b"(9999999999, 999)"[:7]) if name == "train_x.npy" else data

    rewrite(file, huge)
    refused(lambda: read_features(file), "cannot be read")
    header = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": (TERABYTES // 4,)}
    np.lib.format.write_array_header_1_0(header, about)
    np.savez(file, **arrays())
    rewrite(file, lambda name, data: header.getvalue() if name == "train_x.npy" else data)
    refused(lambda: read_features(file), "its size differs")
    file.write_bytes(header.getvalue())  # .npy under the name of an .npz
    refused(lambda: read_features(file), "cannot be read")
    np.savez(file, **{**arrays(), "classnames": np.array([Runs(tmp_path / "executed")] * 7)})
    refused(lambda: read_features(file), "objects, which could run code")
    assert not (tmp_path / "executed").exists()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("text.npy", bytes(100 << 20))
    refused(lambda: read_features(file), "that unpack to 104,857,600")


@pytest.mark.parametrize("descr", ["<U0", "|S0", "|V0"])
def test_elements_of_no_size_are_refused(tmp_path: Path, descr: str) -> None:
    """Of them an array of any length takes no bytes."""
    header = io.BytesIO()
    about = {"descr": descr, "fortran_order": False, "shape": (200_000_000,)}
    np.lib.format.write_array_header_1_0(header, about)
    np.savez(tmp_path / "f.npz", **arrays())
    file = rewrite(
        tmp_path / "f.npz",
        lambda name, data: header.getvalue() if name == "classnames.npy" else data,
    )
    refused(lambda: read_features(file), "elements of zero size")


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_very_many_features_of_no_columns_are_refused(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"f.{suffix}"
    if suffix == "npz":
        np.savez(file, **{**arrays(), "text": np.zeros((TERABYTES, 0), np.float32)})
    else:
        content = {**arrays(), "text": np.zeros((TERABYTES, 0), np.float32)}
        names = json.dumps(content.pop("classnames").tolist())
        safetensors.numpy.save_file(content, file, {"classnames": names})
    refused(lambda: read_features(file), "rows, d|has .* rows")


# Tables.


def test_a_table_of_terabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "words.txt").open("wb") as opened:
        opened.truncate(1 << 40)  # a sparse file takes no room on the disk
    refused(lambda: read_table(tmp_path / "words.txt", 1), "that are accepted")


# Pickles of images.


def pickled(function: str, arguments: bytes) -> bytes:
    return f"c{function}\n".encode() + arguments + b"R"


NAMED = b"\x80\2" + unicode("x" * 100_000) + b"q\1"  # remembered as number 1
ENCODED = pickled("_codecs\nencode", b"h\1" + unicode("latin1") + b"\x86")
UINT8 = pickled("numpy\ndtype", unicode("u1") + b"\x85") + b"q\2"
ARRAY = pickled("numpy.core.multiarray\n_reconstruct", b")")
STATE = b"(K\1J\xa0\x86\1\0\x85h\2\x89h\1tb"
HOSTILE = {
    "bytes again and again": (NAMED + b"](" + ENCODED * 3 + b"e.", "more bytes than it holds"),
    "arrays again and again": (
        NAMED + UINT8 + b"](" + (ARRAY + STATE) * 3 + b"e.", "more bytes than it holds"
    ),
    "a type of tuples": (pickled("numpy\ndtype", NESTED + b"\x85") + b".", "expected uint8"),
    "an encoding of tuples": (
        pickled("_codecs\nencode", unicode("x") + NESTED + b"\x86") + b".", "other than latin1"
    ),
    "a text of tuples": (
        pickled("_codecs\nencode", NESTED + unicode("latin1") + b"\x86") + b".", "other than latin1"
    ),
    "numbers of one hash": (b"}" + LONG_NUMBER + b"Ns.", "not text"),
    "a shape of tuples": (
        NAMED + UINT8 + ARRAY + STATE.replace(b"J\xa0\x86\1\0", NESTED) + b".", "integer"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_pickles_of_images_take_no_more_than_they_hold(what: str) -> None:
    data, match = HOSTILE[what]

    def read() -> Any:
        try:
            return PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
        except Exception as error:
            raise UserError(str(error)) from error

    refused(read, match)


def test_bytes_and_arrays_as_others_pickle_them_are_read() -> None:
    content: dict[str, Any] = {
        "a": [b"one", bytes(range(256))],
        "b": np.arange(200, dtype=np.uint8),
    }
    for protocol in range(5):
        file = io.BytesIO(b"before" + pickle.dumps(content, protocol))
        file.seek(6)
        found = PlainUnpickler(file, encoding="latin1").load()
        assert found["a"] == content["a"]
        assert np.array_equal(found["b"].pixels, content["b"])
    read = PlainUnpickler(io.BytesIO(NAMED + UINT8 + ARRAY + STATE + b".")).load()
    assert read.pixels.tobytes() == b"x" * 100_000


def test_damaged_features_never_surprise(tmp_path: Path) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "f.npz", **arrays())
        data = (tmp_path / "f.npz").read_bytes()
        fuzz(tmp_path / "f.npz", data, 200, lambda: read_features(tmp_path / "f.npz"))


# Banks.


def reseal(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change an index as a stranger can, who knows how to seal it."""
    index = unseal((folder / "index.json").read_bytes())
    change(index)
    (folder / "index.json").write_bytes(seal(index))


@pytest.mark.parametrize(
    "change",
    [
        lambda i: i.pop("tasks"),
        lambda i: i.update(tasks={"1": 2}),
        lambda i: i.update(selection=[1]),
        lambda i: i.update(templates=3),
        lambda i: i["base"].pop("architecture"),
        lambda i: i["tasks"][0].update(task=7),
        lambda i: i["tasks"][0].update(classes="abc"),
        lambda i: i["tasks"][0]["files"].clear(),
        lambda i: i["tasks"][0]["files"].update({"../../x": i["tasks"][0]["files"]["values"]}),
        lambda i: i["tasks"][0]["files"]["values"].update(bytes="156"),
        lambda i: i["selection"].update(w=[-1]),
    ],
)
def test_a_sealed_index_of_another_form_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    make(tmp_path)
    reseal(tmp_path, change)
    refused(lambda: list_bank(tmp_path, Console(file=io.StringIO())), "is not the index of a bank")


def test_banks_of_large_files_and_pipes_are_not_read(tmp_path: Path) -> None:
    make(tmp_path)
    file = tmp_path / "task-001.safetensors"
    with file.open("r+b") as opened:
        opened.truncate(TERABYTES // 1000)  # a sparse file takes no room on the disk
    refused(lambda: DeltaBank.open(tmp_path).verify(), r"is damaged \(10,?995")
    file.unlink()
    os.mkfifo(file)
    refused(lambda: DeltaBank.open(tmp_path).verify(), "is damaged")
    with (tmp_path / "index.json").open("r+b") as opened:
        opened.truncate(TERABYTES // 1000)
    refused(lambda: DeltaBank.open(tmp_path), "is damaged")


def test_names_in_a_bank_are_printed_as_they_are(tmp_path: Path) -> None:
    make(tmp_path)
    names = [*NAMES, *SNEAKY, "\ud800"]
    reseal(tmp_path, lambda i: i["tasks"][0].update(classes=[names[-1]], parents=names[:1]))
    reseal(tmp_path, lambda i: i["tasks"][1].update(classes=["[red]x[/red]"], parents=["\x1b[2J"]))
    reseal(tmp_path, lambda i: i.update(strategy="\x1b]8;;http://x\x07" + "s" * 10_000))
    out = io.StringIO()
    list_bank(tmp_path, Console(file=out, width=200, force_terminal=False))
    text = out.getvalue()
    assert all(line.isprintable() for line in text.split("\n"))
    for shown in ("[red]x[/red]", r"\x1b[2J", r"\ud800", r"\x1b]8;;", "../../x"):
        assert shown in text


# Settings.


BOMB = "a: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], k{i}: 1}}\n" for i in range(1, 40)
)
SETTINGS = {
    "aliases": (BOMB, "an alias"),
    "merges": (MERGES, "an alias"),
    "within itself": ("seed: &a [*a]", "not valid YAML"),
    "deep": ("seed: " + "[" * 50_000, "maximum recursion"),
    "deep mappings": ("".join(f"{' ' * i}a:\n" for i in range(2000)), "maximum recursion"),
    "very many": ("- a\n" * 31_000, "more than 30,000 values"),
    "a null byte": ("epochs: 1\0", "special characters are not allowed"),
    "no UTF-8": (b"epochs: \xff", "not a text file"),
    "half a character": ("epochs: \ud800".encode(errors="surrogatepass"), "not a text file"),
    "digits": ("epochs: " + "9" * 5000, "very many digits"),
    "hexadecimal digits": ("epochs: 0x" + "f" * 9000, "very many digits"),
    "sixties": ("epochs: 1" + ":1" * 100_000, "very many digits"),
    "a long fraction": ("lr: 1" + ":1" * 50_000 + ".5", "very many digits"),
    "twice": ("epochs: 1\nepochs: 2\n", "'epochs' is given twice"),
    "twice below": ("set: [{a: 1, a: 2}]", "'a' is given twice"),
    "a list as key": ("[a]: 1", "a key is not text"),
    "a list": ("- epochs\n", "expected settings"),
    "a text": ("x" * 100_000, "expected settings"),
    "code": ("epochs: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "a wrong bool": ("epochs: !!bool x", "not valid YAML"),
    "a wrong int": ("epochs: !!int ''", "not valid YAML"),
    "a wrong date": ("epochs: !!timestamp x", "not valid YAML"),
    "unknown": ("epocs: 3", "Did you mean 'epochs'"),
    "out of range": ("epochs: 0", "greater than or equal to 1"),
    "long": ("epochs: " + "many" * 10_000, "epochs: .*[.]{3}"),
    "escapes": ('epochs: "\\e[2J\\u202e"', r"\\x1b\[2J\\u202e"),
    "too large": (b"#" * (17 << 20), "more than 2 MiB"),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_hostile_settings_are_one_line(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content, match = SETTINGS[what]
    file = tmp_path / "c.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.process_time()
    with pytest.raises(UserError, match=match):
        read_config(file)
    assert time.process_time() - started < 3  # the largest are read up to a limit
    assert main(["--config", str(file), "--output", str(tmp_path / "runs")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --config") and err.count("\n") == 1 and len(err) < 2000
    assert err.rstrip("\n").isprintable() and not (tmp_path / "runs").exists()


def test_a_setting_of_endless_name_is_one_short_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"? {'e' * 1_000_000}\n: 1\n")
    line = refused(lambda: read_config(tmp_path / "config.yaml"), "unknown setting")
    assert len(line) < 2000


def test_bombs_in_other_places_that_take_yaml(tmp_path: Path) -> None:
    bomb = BOMB.replace("\n", ", ").rstrip(", ")
    refused(lambda: parse_settings([f"clipfit.x={{{bomb}}}"]), "not valid YAML")
    (tmp_path / "t.yaml").write_text(BOMB)
    refused(lambda: read_tasks(tmp_path / "t.yaml", ["x"]), "line 2: .* an alias")


def test_damaged_settings_never_surprise(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    good = {
        "scenario": "x",
        "seed": [1, 2],
        "lr": 1e-3,
        "set": ["a.b=c"],
        "tasks": 3,
        "model": None,
    }
    file.write_text(yaml.safe_dump(good))
    assert read_config(file) == good
    fuzz(file, file.read_bytes() + b"epochs: &a 3\nshots: *a\n", 300, lambda: read_config(file))


# Images.


def test_no_other_program_is_started_for_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PIL gives PostScript to Ghostscript, whatever the file is called."""

    def start(*arguments: Any, **options: Any) -> None:
        pytest.fail("a program is started")

    monkeypatch.setattr("subprocess.Popen", start)
    monkeypatch.setattr("subprocess.check_call", start)
    file = tmp_path / "x.jpg"
    Image.new("RGB", (8, 8)).save(file, "EPS")
    refused(lambda: open_image(file), "not an image of a supported format")
    for kind in ("PDF", "ICNS", "TGA"):
        Image.new("RGB", (16, 16)).save(file, kind)
        refused(lambda: open_image(file), "not an image of a supported format")


def test_an_image_of_very_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    Image.new("1", (8, 8)).save(file)
    start, data = 12, file.read_bytes()  # of its header: kind, width, height, ...
    header = data[start : start + 4] + struct.pack(">II", 50_000, 50_000) + data[24:29]
    header += struct.pack(">I", zlib.crc32(header))
    file.write_bytes(data[:start] + header + data[start + len(header) :])
    refused(lambda: open_image(file), "more than")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "webp", "bmp", "ppm"])
def test_damaged_images_never_surprise(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    file = tmp_path / f"x.{suffix}"
    Image.fromarray(pixels).save(file)
    fuzz(file, file.read_bytes(), 60, lambda: open_image(file))


# Names.


def result(name: str) -> dict[str, Any]:
    curve = [10.0, 50.0, 60.0]
    return {
        "scenario": name, "strategy": "own", "label": name, "seed": 0, "scored_on": "test images",
        "protocol": "transfer", "tasks": [{}, {}], "class_order": [0, 1],
        "model": {"architecture": name, "pretrained": name, "trainable_parameters": 3},
        "timings": {"train_seconds": [1.0]}, "metrics": {"last_accuracy": 60.0},
        "probes": {name: curve}, "all_classes_matrix": [[50.0, None], [40.0, 60.0]],
        "curves": {"accuracy": curve, "forgetting": curve, "retention": curve, "zero_shot": curve},
    }  # fmt: skip


@pytest.mark.parametrize("name", [*NAMES, *SNEAKY], ids=range(len(NAMES) + len(SNEAKY)))
def test_names_are_harmless_in_what_is_printed(name: str) -> None:
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=False)
    display = ConsoleDisplay(console)
    display.note(name)
    display.warn(name)
    display.count(name, 1, 1)
    assert name[:100] in out.getvalue() or name in SNEAKY  # no markup was read in it
    console.print(results_table([result(name)]))
    assert all(line.isprintable() for line in out.getvalue().split("\n"))
    for cell in comparison_csv([result(name)], [name]).split("\n")[1].split(","):
        assert not cell.startswith(("=", "+", "@", '"=')) and printable(cell) == cell
    assert str(UserError(name)).replace("\n", "").isprintable()


@pytest.mark.usefixtures("drawn_figures")
@pytest.mark.parametrize("name", [NAMES[2], NAMES[4], NAMES[7], "\x1b[2J\x00\u202e"], ids=range(4))
def test_names_are_harmless_in_figures(tmp_path: Path, name: str) -> None:
    plot_run(result(name), tmp_path / "curves")
    svg = (tmp_path / "curves.svg").read_text()
    root = xml.etree.ElementTree.fromstring(svg)
    assert not [e for e in root.iter() if e.tag.endswith(("script", "foreignObject"))]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "curves.svg"]


@pytest.mark.parametrize("name", SNEAKY)
def test_classes_of_unreadable_names_are_refused(name: str) -> None:
    data = ImageSet(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]))
    refused(lambda: Source(("fine", name), ("{}",), data, data), "control characters")


def test_what_is_printable_stays_as_it_is() -> None:
    for text in ("plain", "Füße 猫 한국", "\u0645\u06cc\u200c\u062e", "👩\u200d🔬", "a b"):
        assert printable(text) == text
    assert printable("\x1b[2J\r\u202e\x9b\u200f\ufeff") == r"\x1b[2J\r\u202e\x9b\u200f\ufeff"


# A whole run.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Run a method on classes of strange names, without a network; with tokens in the environment.

    Returns the folder that it ran in, and what it printed.
    """
    home = tmp_path_factory.mktemp("home")
    (home / "strange.py").write_text(
        "import torch\nfrom cl_clipfit import ImageSet, Source\nTASKS = 2\nMODEL = 'mini'\n"
        f"PROBES = ()\nNAMES = {[n[:40] for n in NAMES]!r}\ndef load(options, request):\n"
        "    labels = torch.arange(len(NAMES)).repeat(2)\n"
        "    images = torch.arange(len(labels) * 192).view(-1, 3, 8, 8).remainder(256).byte()\n"
        "    data = ImageSet(images, labels)\n"
        "    return Source(tuple(NAMES), ('{}',), data, data)\n"
    )
    (home / "own.py").write_text(
        MINE + "    def trainable(self):\n        return [self.model.clip.ln_final.bias]\n"
    )

    def connect(*arguments: Any) -> None:
        raise AssertionError(f"a connection to {arguments}")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_KEY"):
            patch.setenv(name, MARKER)
        patch.setenv("CL_CLIPFIT_DATA", str(home / "cache"))
        patch.setattr(socket.socket, "connect", connect)
        patch.setattr(socket.socket, "connect_ex", connect)
        patch.chdir(home)
        printed = io.StringIO()
        patch.setattr("sys.stdout", printed)
        patch.setattr("sys.stderr", printed)
        arguments = ["--scenario", "strange", "--strategy", "own", "--plugin", "strange.py",
                     "own.py", "--output", "runs", "--epochs", "1"]  # fmt: skip
        code = main(arguments)
    assert code == 0, printed.getvalue()
    yield home, printed.getvalue()


def test_a_run_on_strange_names_writes_nothing_elsewhere(finished: tuple[Path, str]) -> None:
    home, printed = finished
    names = {p.relative_to(home).parts[0] for p in home.rglob("*")}
    assert names - {"cache", "__pycache__"} == {"strange.py", "own.py", "runs"}  # no wandb folder
    written = [p.name for p in (home / "runs").rglob("*") if p.is_file()]
    assert len(written) > 8 and all(re.fullmatch(r"[\w.-]+", name) for name in written)
    (run,) = (p for p in (home / "runs").iterdir() if p.is_dir())
    found = json.loads((run / "result.json").read_text())
    shown = [name for task in found["tasks"] for name in task["classes"]]
    assert sorted(shown) == sorted(n[:40] for n in NAMES)  # not one is changed
    assert "digest" in found and yaml.safe_load((run / "config.yaml").read_text())["plugin"]
    assert all(line.isprintable() for line in printed.split("\n"))


def test_tokens_never_reach_what_is_written_or_printed(finished: tuple[Path, str]) -> None:
    home, printed = finished
    files = [p for p in home.rglob("*") if p.is_file()]
    assert len(files) > 8
    assert not [p for p in files if MARKER.encode() in p.read_bytes()]
    assert MARKER not in printed and "wandb" not in printed.lower()
