"""Good files of every kind that is read, and damaged, hostile and made-up ones."""

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from cl_clipfit.storage.files import seal

NOWHERE = Path("/nowhere-of-the-faults")  # what no archive may make
NAMES = ("cat", "dog", "grey wolf", "123", "no")
_CONFIG = (
    b"scenario: split-digits\nstrategy: [clipfit, 'mergetune:merge_epochs=2']\nseed: [0, 1]\n"
    b"lr: 1e-3\ntasks: 5\nlimit: 20\nset: [clipfit.kd_weight=8]\nonline: null\nfresh: false\n"
)
_TEXTS = (
    b"", b"\0", b"\xff\xfe", b"[" * 2000, b"{" * 2000, b"&a [*a]\n", b"a: &a [x]\nb: *a\n",
    b"? [a]\n: b\n", b"!!python/object/apply:os.getcwd []\n", b"9" * 5000, b"0x" + b"f" * 5000,
    b"2024-13-45\n", b"<<: 3\n", b"a: 1\na: 2\n", b"\xef\xbb\xbfcat\n", b"- - - -\n", b"null\n",
    b"--- a\n--- b\n", b"%YAML 9.9\n---\na\n", b"\x1b[2J", b"{}\n", b"[]\n", b".inf\n", b"=\n",
    "\u202ecat\n\u2028dog\n".encode(), b"\xed\xa0\x80", b"1:30:00\n", b"!!binary x\n",
)  # fmt: skip
_VALUES = (
    "null", "true", "-1", "0", "1e999", ".nan", "[]", "{}", "'x'", "99999999999999999999", "[[a]]",
    "x" * 5000, "2024-01-01", "!!set {a}", "\"\\0\"", "~", "1_000", "0o17", "[1, null]", "a: b",
)  # fmt: skip


_MODES = {
    "PNG": ("RGB", "RGBA", "P", "L", "I;16", "1", "LA"),
    "TIFF": ("RGB", "L", "I;16", "F", "CMYK"),
    "JPEG": ("RGB", "L", "CMYK"),
}


def config(draws: random.Random) -> bytes:
    """Return a configuration, its values exchanged for others now and then."""
    if draws.random() < 0.5:
        return _CONFIG
    lines = _CONFIG.decode().splitlines()
    at = draws.randrange(len(lines))
    lines[at] = f"{lines[at].partition(':')[0]}: {draws.choice(_VALUES)}"
    return "\n".join(lines).encode()


def names_text(draws: random.Random) -> bytes:
    """Return class names, one a line."""
    return "\n".join(draws.sample(NAMES, len(NAMES))).encode()


def names_yaml(draws: random.Random) -> bytes:
    """Return YAML that gives classes other names."""
    return "".join(f"'{name}': new {name}\n" for name in draws.sample(NAMES, 3)).encode()


def names_json(draws: random.Random) -> bytes:
    """Return the same as JSON."""
    return json.dumps({name: f"new {name}" for name in draws.sample(NAMES, 3)}).encode()


def tasks_yaml(draws: random.Random) -> bytes:
    """Return YAML that names the classes of tasks."""
    drawn = draws.sample(NAMES, len(NAMES))
    return f"first: {drawn[:2]}\nsecond: {drawn[2:]}\n".encode()


def _arrays() -> dict[str, np.ndarray]:
    text = np.eye(5, 4, dtype=np.float32) + 1
    labels = np.arange(5, dtype=np.int32)
    parts = {"train_x": text, "train_y": labels, "test_x": text, "test_y": labels}
    return {**parts, "text": text, "classnames": np.array(NAMES)}


def npz(draws: random.Random) -> bytes:
    """Return features as NumPy writes them."""
    out = io.BytesIO()
    content: dict[str, Any] = _arrays()
    (np.savez if draws.random() < 0.5 else np.savez_compressed)(out, **content)
    return out.getvalue()


def safetensors(draws: random.Random) -> bytes:
    """Return features as safetensors writes them."""
    content = _arrays()
    names = json.dumps(content.pop("classnames").tolist())
    return save({k: torch.from_numpy(v.copy()) for k, v in content.items()}, {"classnames": names})


def weights(draws: random.Random) -> bytes:
    """Return weights as `torch.save` writes them, new or old."""
    out = io.BytesIO()
    state = {"a": torch.ones(2, 3), "b": torch.arange(4), "c": torch.zeros(3).half()}
    torch.save(state, out, _use_new_zipfile_serialization=draws.random() < 0.5)
    return out.getvalue()


def bank_index(draws: random.Random) -> bytes:
    """Return the index of a bank, sealed; what was exchanged in it is sealed too."""
    file = {"name": "task-001.safetensors", "sha256": "0" * 64, "bytes": 9}
    record = {"task": 1, "classes": ["a"], "parents": [], "files": {"values": file}}
    value: dict[str, Any] = {
        "schema": 1, "base": dict.fromkeys(("architecture", "pretrained", "weights_sha256")),
        "strategy": "clipfit", "templates": ["{}"], "selection": {"w": [2]}, "tasks": [record],
    }  # fmt: skip
    if draws.random() < 0.5:
        part = draws.choice((value, value["base"], record, file))
        wrong: tuple[Any, ...] = (None, -1, "x", [], {}, 1e300, True, [[]], {"": {}})
        part[draws.choice([*part])] = draws.choice(wrong)
    return seal(value)


def image(draws: random.Random) -> bytes:
    """Return an image of any kind that is read."""
    kind = draws.choice(("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"))
    mode = draws.choice(_MODES.get(kind, ("RGB",)))
    size, out = (draws.randint(1, 24), draws.randint(1, 24)), io.BytesIO()
    Image.new(mode, size).save(out, kind)
    return out.getvalue()


def archive(draws: random.Random) -> bytes:
    """Return an archive of any kind, whose names or members may be hostile."""
    bad = draws.random() < 0.5
    names = ["set/a.txt", "set/b/c.bin"]
    if bad:
        names[0] = draws.choice(
            ("../out", f"{NOWHERE}/out", "a/../../out", "..\\out", "C:\\out", "x" * 300, "", ".",
             "set", "set/b/c.bin", "set/b", "\u202ea", "a\n", "set/b/c.bin/d")
        )  # fmt: skip
    out = io.BytesIO()
    if draws.random() < 0.3:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name in names:
                entry = zipfile.ZipInfo(name)
                entry.external_attr = (0o120777 << 16) if bad and draws.random() < 0.3 else 0
                zipped.writestr(entry, draws.randbytes(200))
        return out.getvalue()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            if bad:
                info.type = draws.choice((b"0", b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"S"))
                info.linkname = "../../out"
            data = draws.randbytes(200)
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    pack = draws.choice((bytes, gzip.compress, bz2.compress, lzma.compress))
    return pack(out.getvalue())


def damaged(data: bytes, is_text: bool, draws: random.Random) -> bytes:
    """Return a file changed, cut short, or made up; one in ten is left as it is."""
    way = draws.random()
    if way < 0.1:
        return data
    if way < 0.2:
        return draws.choice(_TEXTS) if is_text else draws.randbytes(draws.choice((0, 1, 9, 900)))
    if way < 0.3:
        return data[: draws.randrange(len(data) + 1)]
    changed = bytearray(data)
    for _ in range(draws.randint(1, 4)):
        at, size = draws.randrange(len(changed) + 1), draws.choice((1, 1, 2, 4, 8, 40))
        changed[at : at + size] = draws.choice(
            (b"", draws.randbytes(size), b"\xff" * size, b"9" * size, bytes(size),
             bytes(changed[at : at + size]) * 2, draws.choice(_TEXTS) if is_text else b"\x7f")
        )  # fmt: skip
    return bytes(changed)


def write(file: Path, data: bytes) -> Path:
    """Write a file and return it."""
    file.write_bytes(data)
    return file
