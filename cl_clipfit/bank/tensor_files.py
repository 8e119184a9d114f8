"""What the files of a bank's tensors are called, and what may be in them."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


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


def difference_of_shapes(actual: dict[str, list[int]], expected: dict[str, list[int]]) -> str:
    """Describe the first difference of names and shapes; "" if there is none."""
    for name in [*expected, *actual]:
        if actual.get(name) != expected.get(name):
            return f"{name} is {actual.get(name, 'missing')}, expected {expected.get(name, 'none')}"
    return ""
