"""The files of a bank's tensors: what they are called, what may be in them, how they are read."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from cl_clipfit.errors import UserError, is_file
from cl_clipfit.storage.files import has_holes, read_bytes, sha256


def file_name(task: int, kind: str) -> str:
    """Return the name of a task's file, from its number and the kind of tensors."""
    return f"task-{task:03d}{'' if kind == 'values' else f'-{kind}'}.safetensors"


def prepared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as they are stored: on the CPU, separate, in float32 if they are floats.

    Raises:
        ValueError: one is float64, which would be rounded.
    """
    if wide := [name for name, value in tensors.items() if value.dtype == torch.float64]:
        raise ValueError(f"{wide[0]} is float64, and the bank stores float32: convert it first")
    return {
        name: value.detach()
        .to("cpu", torch.float32 if value.is_floating_point() else value.dtype)
        .clone(memory_format=torch.contiguous_format)  # safetensors needs separate memory
        for name, value in tensors.items()
    }


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Return the shape of every tensor."""
    return {name: list(value.shape) for name, value in tensors.items()}


def most_bytes(selection: Mapping[str, Sequence[int]]) -> int:
    """Return the largest size of a safetensors file with these tensors, in float32."""
    values = sum(map(math.prod, selection.values()))
    # The header holds names (up to six bytes per character, escaped), sizes and offsets.
    header = sum(256 + 6 * len(name) + 16 * len(shape) for name, shape in selection.items())
    return 4 * values + 4096 + header


def difference_of_shapes(actual: Mapping[str, list[int]], expected: Mapping[str, list[int]]) -> str:
    """Describe the first difference of names and shapes; "" if there is none."""
    for name in [*expected, *actual]:
        if actual.get(name) != expected.get(name):
            return f"{name} is {actual.get(name, 'missing')}, expected {expected.get(name, 'none')}"
    return ""


def read_up_to(path: Path, most: int) -> bytes:
    """Read a file; return b"" if it is larger than `most` bytes, or a pipe or a device.

    Raises:
        UserError: it is missing, unreadable or sparse.
    """
    plain = is_file(path) or not os.path.lexists(path)  # `read_bytes` reports that it is missing
    large = is_file(path) and path.stat().st_size > most
    if plain and not large and has_holes(path):
        raise UserError(f"{path} is damaged, it is mostly holes: restore the file, or train again")
    return read_bytes(path, most) if plain and not large else b""


def read_tensors(
    path: Path, listed: Mapping[str, Any], selection: Mapping[str, list[int]] | None
) -> dict[str, Tensor]:
    """Read a file of tensors, on the CPU.

    Args:
        path: the file.
        listed: its size and SHA-256 hash in the index, as `bytes` and `sha256`.
        selection: shapes of its parameters by name, in the order of the model; None if it may hold
            tensors of any names, shapes and types.

    Raises:
        UserError: the file is damaged, or does not fit the index.
    """
    written = listed["bytes"]
    if selection is not None and written > (most := most_bytes(selection)):
        raise UserError(
            f"{path} does not fit its index: it has {written:,} bytes, and a task's parameters"
            f" take at most {most:,}; train again"
        )
    data = read_up_to(path, written)
    if len(data) != written or sha256(data) != listed["sha256"]:
        raise UserError(
            f"{path} is damaged ({path.stat().st_size} bytes, {written} were written):"
            " restore the file, or train again"
        )
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not a safetensors file: train again") from error
    if selection is None:
        return tensors
    if wrong := difference_of_shapes(shapes(tensors), selection):
        raise UserError(f"{path} does not fit its index: {wrong}; train again")
    for name, value in tensors.items():  # anyone can seal a bank
        if value.dtype != torch.float32:
            raise UserError(f"{path}: {name} is {value.dtype}, and a bank stores float32")
    return {name: tensors[name] for name in selection}
