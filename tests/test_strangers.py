"""Files of strangers are harmless: nothing they name is run, no claim of theirs takes memory."""

import io
import json
import os
import pickle
import random
import re
import resource
import shutil
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
import open_clip
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import yaml
from PIL import Image
from rich.console import Console

from cl_clipfit.cli import main
from cl_clipfit.clip import create_classifier
from cl_clipfit.clip.checkpoint import check_checkpoint, check_folder
from cl_clipfit.clip.configuration import check_config
from cl_clipfit.clip.factory import hash_weights
from cl_clipfit.clip.weights import MINI_FOLDER
from cl_clipfit.commands.bank import list_bank
from cl_clipfit.config import parse_settings, read_config
from cl_clipfit.data.decode import open_image
from cl_clipfit.data.formats.feature_files import read_features
from cl_clipfit.data.formats.imagenet import read_table
from cl_clipfit.data.formats.plain_pickle import PlainUnpickler
from cl_clipfit.data.orders import read_tasks
from cl_clipfit.data.source import ImageSet, Source
from cl_clipfit.errors import UserError, printable
from cl_clipfit.files import seal, unseal
from cl_clipfit.report.display import ConsoleDisplay
from cl_clipfit.report.figures import plot_run
from cl_clipfit.report.tables import comparison_csv, results_table
from cl_clipfit.tuning.bank import DeltaBank
from tests.conftest import MINE
from tests.test_bank import make
from tests.test_features import arrays

TERABYTES = 10 << 40
MOST_MEMORY = 300 << 20  # more than this is no checking
MARKER = "hf_SecretOfTheUser"
NAMES = (
    "../../x", "/etc/passwd", "<script>alert(1)</script>", "[red]x[/red]", "$x^2$", "=1+1|'cmd'",
    "'\"&amp;", "long " * 2000, "%s {} {0}", "a\\",
)  # fmt: skip
SNEAKY = ("\x1b[2J", "\r", "a\u202eb", "a\x00b", "\u2028", "\x9b2J")


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def refused(read: Callable[[], Any], match: str | None = None) -> str:
    """Return the one line that a file is refused with, at once and without taking memory."""
    before, started = peak_bytes(), time.process_time()
    with pytest.raises(UserError, match=match) as caught:
        read()
    assert time.process_time() - started < 1
    assert peak_bytes() - before < MOST_MEMORY
    line = " ".join(str(caught.value).split())
    assert len(line) < 1000 and line.isprintable()
    return line


def mutations(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield damaged copies: bytes changed, cut out, doubled, or set to the largest number."""
    draws = random.Random(seed)
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(draws.randint(1, 4)):
            at, size = draws.randrange(len(data)), draws.choice((1, 1, 2, 4, 8, 40))
            piece = draws.choice(
                (b"", draws.randbytes(size), b"\xff" * size, b"9" * size, bytes(size),
                 bytes(changed[at : at + size]) * 2)
            )  # fmt: skip
            changed[at : at + size] = piece
        yield bytes(changed)


def fuzz(file: Path, data: bytes, count: int, read: Callable[[], Any]) -> None:
    """Read damaged copies: each is read, or refused with a line, and none takes a second."""
    before, ways = peak_bytes(), set()
    for changed in mutations(data, count):
        file.write_bytes(changed)
        started = time.process_time()
        try:
            read()
            ways.add("read")
        except UserError as error:
            assert printable(str(error)) == str(error)
            ways.add("refused")
        assert time.process_time() - started < 1, changed[:200]
    assert "refused" in ways
    assert peak_bytes() - before < MOST_MEMORY


# Weights.


class Runs:
    """A class whose pickle makes a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


class Calls:
    """A class whose pickle calls what `torch.load` admits."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.called


def rewrite(file: Path, change: Callable[[str, bytes], bytes], kind: int = 0) -> Path:
    """Write an archive anew, each member changed."""
    with zipfile.ZipFile(file) as archive:
        content = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("suffix", ["pt", "bin", "npz"])
def test_weights_that_would_run_code_are_refused_and_do_not_run(
    tmp_path: Path, old: bool, suffix: str
) -> None:
    executed, file = tmp_path / "executed", tmp_path / f"w.{suffix}"
    for evil in ({"w": torch.ones(2), "x": Runs(executed)}, Runs(executed)):
        torch.save(evil, file, _use_new_zipfile_serialization=not old)
        line = refused(
            lambda: create_classifier(f"mini:{file}"),
            "asks to run .*, which is refused|no archive of arrays",
        )
        assert str(file) in line
    plain = tmp_path / "plain.pkl"
    plain.write_bytes(pickle.dumps(Runs(executed)))
    refused(lambda: create_classifier(f"mini:{plain}"))
    assert not executed.exists()


def test_a_folder_of_weights_is_checked_too(tmp_path: Path) -> None:
    model = json.loads((MINI_FOLDER / "mini.json").read_text())
    config = tmp_path / "open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": model}))
    refused(lambda: create_classifier(f"local-dir:{tmp_path}"), "holds no weights")
    torch.save({"x": Runs(tmp_path / "executed")}, tmp_path / "model.bin")
    refused(lambda: create_classifier(f"local-dir:{tmp_path}"), "asks to run")
    assert not (tmp_path / "executed").exists()
    (tmp_path / "model.bin").unlink()
    weights = (MINI_FOLDER / "weights.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    check_folder(tmp_path)
    for tower, change in (
        ("vision_cfg", {"width": 10**9}), ("text_cfg", {"vocab_size": 10**12}),
        ("text_cfg", {"layers": 10**6}), ("vision_cfg", {"layers": 900, "width": 4096}),
        ("vision_cfg", {"image_size": [10**7, 10**7]}),
    ):  # fmt: skip
        large = {**model, tower: {**model[tower], **change}}
        config.write_text(json.dumps({"model_cfg": large}))
        refused(lambda: create_classifier(f"local-dir:{tmp_path}"), "far larger than its weights")
    for text in (
        "",
        "[" * 100_000,
        "{}",
        '{"model_cfg": 3}',
        '{"model_cfg": {"a": {"layers": ""}}}',
    ):
        config.write_text(text)
        refused(lambda: check_config(config, 1000), "no configuration")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("text_cfg", {"context_length": 40_000}),
        ("text_cfg", {"context_length": 4_097, "width": 1, "vocab_size": 1}),
        ("text_cfg", {"mlp_ratio": 10**5}),
        ("text_cfg", {"hf_model_name": "x", "context_length": 40_000}),
        ("text_cfg", {"norm_kwargs": {"more": [[10**9]]}}),
        ("text_cfg", {"layers": 0, "width": 10**6}),
        ("multimodal_cfg", {"context_length": 40_000}),
        ("multimodal_cfg", {"vocab_size": 10**6}),
        ("vision_cfg", {"image_size": 20_000, "patch_size": 1}),
        ("vision_cfg", {"image_size": [20_000, 300], "patch_size": [1, 2]}),
        ("vision_cfg", {"image_size": 20_000, "patch_size": None}),
        ("vision_cfg", {"image_size": 10**6, "layers": [1, 1, 1, 1]}),
        ("vision_cfg", {"layers": [1, 1, 1, 1], "width": 4_096}),
        ("vision_cfg", {"timm_model_name": "x", "image_size": 20_000}),
        ("vision_cfg", {"patch_size": 10**4}),
        ("vision_cfg", {"attentional_pool": True, "attn_pooler_queries": 10**6}),
        ("", {"embed_dim": 10**6}),
        ("", {"embed_dim": 16_385, "vision_cfg": {"timm_model_name": "x"}, "text_cfg": {}}),
        ("", {"init_logit_scale": float("nan")}),
        ("", {"init_logit_scale": float("-inf")}),
        ("", {"init_logit_scale": -(10**400)}),
    ],
)
def test_a_model_far_larger_than_its_weights_is_refused(
    tmp_path: Path, part: str, change: dict[str, Any]
) -> None:
    file = tmp_path / "open_clip_config.json"
    model = json.loads((MINI_FOLDER / "mini.json").read_text())
    size = (MINI_FOLDER / "weights.safetensors").stat().st_size
    file.write_text(json.dumps({"model_cfg": model}))
    check_config(file, size)
    changed = {part: {**model.get(part, {}), **change}} if part else change
    file.write_text(json.dumps({"model_cfg": {**changed, **model, **changed}}))  # it comes first
    refused(lambda: check_config(file, size), "far larger than its weights")


@pytest.mark.parametrize(
    "change",
    [{"layers": -(10**6), "width": 1000}, {"layers": [-5, 5]}, {"width": "9" * 10**6},
     {"vocab_size": True}, {"image_size": [-224, -224]}],
)  # fmt: skip
def test_sizes_that_would_make_others_seem_small_are_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    file = tmp_path / "open_clip_config.json"
    file.write_text(json.dumps({"model_cfg": {"vision_cfg": change}}))
    refused(lambda: check_config(file, 10**10), "no configuration")


def test_every_model_that_open_clip_ships_is_admitted(tmp_path: Path) -> None:
    file = tmp_path / "open_clip_config.json"
    for name in open_clip.list_models():
        file.write_text(json.dumps({"model_cfg": open_clip.get_model_config(name)}))
        check_config(file, 10**11)


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "coca_ViT-B-32", "ViT-B-16-SigLIP"])
def test_a_model_is_not_said_to_be_larger_than_it_is(tmp_path: Path, name: str) -> None:
    """Weights of a byte a value, which are smaller than any that are in use."""
    model = open_clip.get_model_config(name)
    options = {key: value for key, value in model.items() if key != "custom_text"}
    towers = {"coca": open_clip.CoCa, "ViT-B-16-S": open_clip.CustomTextCLIP}
    kind = next((kind for start, kind in towers.items() if name.startswith(start)), open_clip.CLIP)
    if "timm_model_name" in options["vision_cfg"]:
        options["vision_cfg"] = {}  # open_clip's own, of the same size
    with torch.device("meta"):
        values = sum(p.numel() for p in kind(**options).parameters())
    file = tmp_path / "open_clip_config.json"
    file.write_text(json.dumps({"model_cfg": options}))
    check_config(file, values)
    refused(lambda: check_config(file, values // 2), "far larger than its weights")


@pytest.mark.parametrize("place", ["text_cfg", "vision_cfg", "custom"])
def test_a_model_that_brings_code_is_refused(tmp_path: Path, place: str) -> None:
    """The tokenizer of such a folder could be any Python file in it."""
    folder = tmp_path / "model"
    shutil.copytree(MINI_FOLDER, folder)
    weights = next(f for f in folder.iterdir() if f.suffix == ".safetensors")
    config = {"model_cfg": json.loads((MINI_FOLDER / "mini.json").read_text())}
    file = folder / "open_clip_config.json"
    file.write_text(json.dumps(config))
    check_config(file, weights.stat().st_size)
    part = config["model_cfg"].setdefault(place, {})
    part["hf_tokenizer_name"] = "x"
    part["tokenizer_kwargs"] = {"more": [{"trust_remote_code": True}]}
    file.write_text(json.dumps(config))
    line = refused(lambda: check_config(file, weights.stat().st_size))
    assert "trust_remote_code" in line
    with pytest.raises(UserError, match="trust_remote_code"):
        create_classifier(f"local-dir:{folder}")
    part["tokenizer_kwargs"] = {"trust_remote_code": False}
    file.write_text(json.dumps(config))
    check_config(file, weights.stat().st_size)


def test_what_comes_from_the_hub_is_checked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = json.loads((MINI_FOLDER / "mini.json").read_text())
    config, weights = tmp_path / "open_clip_config.json", tmp_path / "open_clip_model.bin"
    config.write_text(json.dumps({"model_cfg": model}))

    def fetch(name: str, filename: str = "", **options: Any) -> str:
        return str(config if filename else weights)

    for module in ("pretrained", "factory"):
        monkeypatch.setattr(f"open_clip.{module}.download_pretrained_from_hf", fetch)
    torch.save({"x": Runs(tmp_path / "executed")}, weights)
    refused(lambda: create_classifier("hf-hub:stranger/model"), "asks to run")
    assert not (tmp_path / "executed").exists()
    state = safetensors.torch.load_file(MINI_FOLDER / "weights.safetensors")
    torch.save(state, weights)
    expected = hash_weights(create_classifier("mini").clip)
    assert hash_weights(create_classifier("hf-hub:stranger/model").clip) == expected


@pytest.mark.parametrize("old", [False, True])
def test_weights_as_others_save_them_are_read(tmp_path: Path, old: bool) -> None:
    state = safetensors.torch.load_file(MINI_FOLDER / "weights.safetensors")
    expected = hash_weights(create_classifier("mini").clip)
    options = {"_use_new_zipfile_serialization": not old}
    half = {name: value.half() for name, value in state.items()}
    module = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    training = {"epoch": 3, "name": "x", "optimizer": optimiser.state_dict(), "state_dict": state}
    parameters = {f"module.{n}": torch.nn.Parameter(v) for n, v in state.items()}
    for content in (state, training, parameters):
        torch.save(content, tmp_path / "w.pt", **options)
        assert hash_weights(create_classifier(f"mini:{tmp_path / 'w.pt'}").clip) == expected
    torch.save(half, tmp_path / "half.pt", **options)
    check_checkpoint(tmp_path / "half.pt")


def test_torchscript_is_not_loaded_as_code(tmp_path: Path) -> None:
    file = tmp_path / "ViT-B-32.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    line = refused(lambda: create_classifier(f"ViT-B-32-quickgelu:{file}"), "TorchScript")
    assert "is not run" in line and "ViT-B-16-quickgelu:openai" in line


def test_weights_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"

    def check(match: str) -> None:
        refused(lambda: create_classifier(f"mini:{file}"), match)

    torch.save({"w": torch.ones(1).expand(10**6, 10**7)}, file)  # one value, said to be 40 TB
    check("made of 1 values")
    torch.save(
        {"w": torch.ones(1).expand(10**6, 10**7)}, file, _use_new_zipfile_serialization=False
    )
    check("made of 1 values")
    for evil in (Calls(bytearray, 10**10), Calls(torch.FloatTensor, 10**10), {((),) * 3: 1}):
        torch.save(evil, file)
        check("refused|no name")
    torch.save({"w": torch.zeros(1_000_000)}, file)
    rewrite(file, lambda name, data: data, zipfile.ZIP_DEFLATED)
    check("that unpack to")
    torch.save({"w": torch.rand(1000)}, file)
    rewrite(file, lambda name, data: data[:100] if name.endswith("/data/0") else data)
    check("fewer values than it says")
    torch.save({"w": torch.rand(1000)}, file)
    file.write_bytes(file.read_bytes()[:2000])
    check("cannot load")
    remembered = b"\x80\x02]r\xff\xff\xff\x7f."  # a list, kept as the object of number 2**31 - 1
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("w/data.pkl", remembered)
    assert refused(lambda: create_classifier(f"mini:{file}"))
    before = peak_bytes()
    assert PlainUnpickler(io.BytesIO(remembered)).load() == []
    assert peak_bytes() - before < MOST_MEMORY
    for evil in ({((),) * 3: 1}, bytearray(9)):
        with pytest.raises((pickle.UnpicklingError, KeyError)):
            PlainUnpickler(io.BytesIO(pickle.dumps(evil, protocol=5))).load()


NESTED = b")" + b"q\0h\0\x86" * 24  # of 2 ** 24 tuples, for whoever prints or hashes it
LONG_NUMBER = b"\x8a\xff" + b"\x7f" * 255


def text(value: str) -> bytes:
    """Return the opcodes of a text."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def weights(
    key: bytes = text("0"),
    count: bytes = b"K\4",
    shape: bytes = b"K\4\x85",
    strides: bytes = b"K\1\x85",
    more: bytes = b"",
    order: bytes = b")",
) -> bytes:
    """Return a pickle of one tensor, parts of which are other opcodes."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + key + text("cpu") + count
    ordered = b"\x89ccollections\nOrderedDict\n" + order + b"R"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + more + b"tQK\0" + shape + strides
    return b"\x80\2}" + text("w") + tensor + ordered + b"tRs."


def old_file(content: bytes, keys: bytes = b"\x80\2](" + text("0") + b"e.") -> bytes:
    parts: tuple[Any, ...] = (0x1950A86A20F9469CFC6C, 1001, {})
    head = b"".join(pickle.dumps(part, 2) for part in parts)
    return head + content + keys + struct.pack("<q4f", 4, 1, 2, 3, 4)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"key": NESTED},
        {"key": text("9" * 200)},
        {"key": b"K\0"},
        {"count": NESTED},
        {"count": LONG_NUMBER},
        {"shape": NESTED},
        {"shape": NESTED + b"\x85"},
        {"shape": b"(" + LONG_NUMBER * 1_000 + b"t"},
        {"shape": b"(" + b"K\1" * 65 + b"t", "strides": b"(" + b"K\1" * 65 + b"t"},
        {"strides": NESTED},
        {"strides": b"\x8a\5\0\0\0\0\1\x85"},  # 16 GB lie between one value and the next
        {"strides": b")"},
        {"order": b"(](" + NESTED + b"K\1\x86et"},
        {"order": b")R](" + NESTED + b"K\1\x86eb)"},
        {"more": b"(" + NESTED + b"K\0K\4t"},
    ],
)
def test_weights_of_endless_tuples_and_numbers_are_refused_at_once(
    tmp_path: Path, change: dict[str, bytes], old: bool
) -> None:
    file = tmp_path / "w.pt"
    if old:
        file.write_bytes(old_file(weights(**{"more": b"N", **change})))
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("w/data.pkl", weights(**change))
            archive.writestr("w/version", b"3\n")
            archive.writestr("w/data/0", struct.pack("<4f", 1, 2, 3, 4))
    if change:
        refused(lambda: check_checkpoint(file), "cannot load")
    else:
        check_checkpoint(file)
        assert torch.load(file, weights_only=True)["w"].tolist() == [1, 2, 3, 4]


def test_keys_of_old_weights_are_texts(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    for keys in (b"\x80\2](" + NESTED + b"e.", b"\x80\2" + text("0") + b"."):
        file.write_bytes(old_file(weights(more=b"N"), keys))
        refused(lambda: check_checkpoint(file), "nothing that torch.save writes")
    numbers = b"".join(
        b"\x8a\x10" + (n * (2**61 - 1) + 2**100).to_bytes(16, "little") + b"N" for n in range(4)
    )  # all of one hash
    file.write_bytes(old_file(b"\x80\2}(" + numbers + b"u."))
    refused(lambda: check_checkpoint(file), "a key that is no name")


def packed(*names: str) -> bytes:
    """Return an archive of harmless weights under such names."""
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w") as archive:
        for name in names:
            archive.writestr(name, weights() if name.lower().endswith(".pkl") else bytes(16))
    return found.getvalue()


def patched(data: bytes, at: int, number: int) -> bytes:
    """Return an archive of `torch.save` with another number in its last records."""
    at += len(data)
    return data[:at] + struct.pack("<Q", number) + data[at + 8 :]


AMBIGUOUS: dict[str, Callable[[bytes], bytes]] = {
    "an archive in front": lambda data: packed("w/data.pkl", "w/data/0") + data,
    "an archive behind": lambda data: data + packed("w/data.pkl", "w/data/0"),
    "its own copy in front": lambda data: data + data,
    "data in front": lambda data: b"PK\3\4" + data,
    "data behind": lambda data: data + b"\0",
    "a comment": lambda data: data[:-2] + b"\4\0more",
    "a directory elsewhere": lambda data: patched(data, 48 - 98, 4),
    "a shorter directory": lambda data: patched(data, 40 - 98, 47),
    "fewer members": lambda data: patched(data, 32 - 98, 1),
    "a longer record": lambda data: patched(data, 4 - 98, 45),
    "a record elsewhere": lambda data: patched(data, 8 + 56 - 98, 0),
    "a name twice": lambda _: packed("w/data.pkl", "w/data/0", "w/data/1").replace(b"/1", b"/0"),
    "a name in capitals": lambda _: packed("w/DATA.pkl", "w/data/0", "w/data.pkl"),
    "half a name": lambda _: packed("w/data.pkl", "w/data/0", "w/data/01").replace(b"01", b"0\0"),
    "no member": lambda _: packed(),
}


@pytest.mark.parametrize("what", AMBIGUOUS)
def test_an_archive_that_readers_may_take_for_two_is_refused(tmp_path: Path, what: str) -> None:
    """PyTorch takes each place in it as it is written; Python allows for data in front of all."""
    file = tmp_path / "w.pt"
    torch.save({"w": torch.ones(4)}, file)
    check_checkpoint(file)
    file.write_bytes(AMBIGUOUS[what](file.read_bytes()))
    refused(lambda: check_checkpoint(file), "cannot load")


def test_weights_are_found_whatever_the_case_of_their_name(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("w/DATA.PKL", pickle.dumps(Runs(tmp_path / "executed"), 2))
    refused(lambda: check_checkpoint(file), "asks to run")
    torch.save({"w": torch.rand(100)}, file)
    rewrite(file, lambda name, data: data, zipfile.ZIP_DEFLATED)
    refused(lambda: check_checkpoint(file), "packed members")


def forged(header: Any, data: bytes = bytes(16), length: int | None = None) -> bytes:
    """Return a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(shape: list[int], start: int = 0, end: int = 16, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


FORGED = {
    "a header of 10 TB": forged({}, length=TERABYTES),
    "a header beyond the file": forged({"w": tensor([4])}, length=500),
    "a header of no length": bytes(8),
    "no header": b"",
    "10 TB of values": forged({"w": tensor([TERABYTES // 4], 0, TERABYTES)}),
    "more values than bytes": forged({"w": tensor([5])}),
    "a shape beyond numbers": forged({"w": tensor([2**40, 2**40])}),
    "a negative shape": forged({"w": tensor([-4])}),
    "overlaps": forged({"v": tensor([2], 0, 8), "w": tensor([3], 4, 16)}),
    "a hole": forged({"v": tensor([1], 0, 4), "w": tensor([2], 8, 16)}),
    "beyond its end": forged({"w": tensor([8], 0, 32)}),
    "backwards": forged({"w": tensor([4], 16, 0)}),
    "an unknown type": forged({"w": tensor([4], dtype="X99")}),
    "no mapping": forged([1]),
    "deep": forged(b"[" * 100_000),
    "no JSON": forged(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("what", FORGED)
def test_forged_safetensors_are_refused(tmp_path: Path, what: str) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(FORGED[what])
    refused(lambda: create_classifier(f"mini:{file}"), "cannot load")
    refused(lambda: read_features(file), "cannot be read")


def test_damaged_weights_never_surprise(tmp_path: Path) -> None:
    data = safetensors.torch.save({"a": torch.ones(3, 2), "b": torch.zeros(5).half()})
    file = tmp_path / "w.safetensors"
    fuzz(file, data, 200, lambda: check_checkpoint(file))
    for old in (False, True):
        torch.save({"a": torch.ones(3, 2)}, file, _use_new_zipfile_serialization=not old)
        file = tmp_path / "w.pt"
        data = (tmp_path / "w.safetensors").read_bytes()
        fuzz(file, data, 150, lambda file=file: check_checkpoint(file))  # type: ignore[misc]


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
    refused(lambda: read_features(file), "holds other bytes")
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
    refused(lambda: read_features(file), "elements of no size")


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
    refused(lambda: read_table(tmp_path / "words.txt", 1), "at most are read")


# Pickles of images.


def pickled(function: str, arguments: bytes) -> bytes:
    return f"c{function}\n".encode() + arguments + b"R"


NAMED = b"\x80\2" + text("x" * 100_000) + b"q\1"  # remembered as number 1
ENCODED = pickled("_codecs\nencode", b"h\1" + text("latin1") + b"\x86")
UINT8 = pickled("numpy\ndtype", text("u1") + b"\x85") + b"q\2"
ARRAY = pickled("numpy.core.multiarray\n_reconstruct", b")")
STATE = b"(K\1J\xa0\x86\1\0\x85h\2\x89h\1tb"
HOSTILE = {
    "bytes again and again": (NAMED + b"](" + ENCODED * 3 + b"e.", "more bytes than it holds"),
    "arrays again and again": (
        NAMED + UINT8 + b"](" + (ARRAY + STATE) * 3 + b"e.", "more bytes than it holds"
    ),
    "a type of tuples": (pickled("numpy\ndtype", NESTED + b"\x85") + b".", "expected uint8"),
    "an encoding of tuples": (
        pickled("_codecs\nencode", text("x") + NESTED + b"\x86") + b".", "another encoding"
    ),
    "a text of tuples": (
        pickled("_codecs\nencode", NESTED + text("latin1") + b"\x86") + b".", "another encoding"
    ),
    "numbers of one hash": (b"}" + LONG_NUMBER + b"Ns.", "no text"),
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
    refused(lambda: list_bank(tmp_path, Console(file=io.StringIO())), "no index of a bank")


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
    "aliases": (BOMB, "more than 30,000 values"),
    "merges": (MERGES, "more than 30,000 values"),
    "within itself": ("seed: &a [*a]", "not valid YAML"),
    "deep": ("seed: " + "[" * 50_000, "20 lists within lists"),
    "deep mappings": ("".join(f"{' ' * i}a:\n" for i in range(2000)), "20 lists within lists"),
    "very many": ("- a\n" * 31_000, "more than 30,000 values"),
    "a null byte": ("epochs: 1\0", "special characters are not allowed"),
    "no UTF-8": (b"epochs: \xff", "not a text file"),
    "half a character": ("epochs: \ud800".encode(errors="surrogatepass"), "not a text file"),
    "digits": ("epochs: " + "9" * 5000, "very many digits"),
    "hexadecimal digits": ("epochs: 0x" + "f" * 9000, "very many digits"),
    "sixties": ("epochs: 1" + ":1" * 100_000, "very many digits"),
    "a long fraction": ("lr: 1" + ":1" * 50_000 + ".5", "very many digits"),
    "twice": ("epochs: 1\nepochs: 2\n", "'epochs' is there twice"),
    "twice below": ("set: [{a: 1, a: 2}]", "'a' is there twice"),
    "a list as key": ("[a]: 1", "a key is no text"),
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
    refused(lambda: read_tasks(tmp_path / "t.yaml", ["x"]), "more than 30,000 values")
    (tmp_path / "t.yaml").write_text("a: &x [1]\nb: *x\n")  # what may be an alias is read
    assert "again" in refused(lambda: read_tasks(tmp_path / "t.yaml", ["0", "1"]))


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
    refused(lambda: open_image(file), "no image of a known kind")
    for kind in ("PDF", "ICNS", "TGA"):
        Image.new("RGB", (16, 16)).save(file, kind)
        refused(lambda: open_image(file), "no image of a known kind")


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
