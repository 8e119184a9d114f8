"""NumPy's `.npz`: written with equal bytes for equal arrays, and read without trusting the file."""

import io
import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

FREE_BYTES, MOST_PACKED = 64 << 20, 20  # what an .npz may unpack to: 64 MiB, and 20 times its size


def render_npz(arrays: Mapping[str, Any]) -> bytes:
    """Return the bytes of a compressed `.npz` file; NumPy writes no time into it."""
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def read_npz(file: Path, names: Iterable[str]) -> dict[str, Any]:
    """Return those of the named arrays that a file holds.

    Raises:
        Exception: of any kind, if the file is damaged.
        ValueError: an array would run code, or does not have the size that it declares.
    """
    with zipfile.ZipFile(file) as archive:
        _check_members(archive, file.stat().st_size)
    with np.load(file, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in names if key in arrays.files}


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Compare the arrays' headers with the bytes present, before any array is read."""
    members = archive.infolist()
    held = sum(member.file_size for member in members)
    if held > FREE_BYTES + MOST_PACKED * size:
        raise ValueError(f"{size:,} bytes that unpack to {held:,}, more than {MOST_PACKED} times")
    for member in members:
        with archive.open(member) as content:
            version = np.lib.format.read_magic(content)
            read = {(1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0}.get(version)  # fmt: skip
            if read is None:
                raise ValueError(f"{member.filename} is an array of version {version}")
            shape, _, dtype = read(content)
            if dtype.hasobject:
                raise ValueError(f"{member.filename} holds objects, which could run code")
            if dtype.itemsize == 0:  # any number of them takes no bytes
                raise ValueError(f"{member.filename} holds elements of zero size")
            if math.prod(shape) * dtype.itemsize != member.file_size - content.tell():
                raise ValueError(f"{member.filename} declares {dtype} {shape}, its size differs")
