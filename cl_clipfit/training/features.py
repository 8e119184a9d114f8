"""Features of a training step, the workload of a task, and labels as an index."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

Reach = Literal["task", "seen", "stream"]


def tasks_in_reach(reach: Reach, task: int, tasks: int) -> range:
    """Return the tasks, from 0, on whose images a method trains in a task.

    Args:
        reach: the task alone, all tasks so far, or all tasks of the stream.
        task: from 0.
        tasks: of the stream.
    """
    return {
        "task": range(task, task + 1), "seen": range(task + 1), "stream": range(tasks),
    }[reach]  # fmt: skip


def experiences_in_reach(reach: Reach, experience: Any) -> list[Any]:
    """Return the experiences of Avalanche whose images are trained on in the task of one."""
    if reach == "task":
        return [experience]
    stream = experience.origin_stream
    span = tasks_in_reach(reach, experience.current_experience, len(stream))
    return [stream[at] for at in span]


def keep_columns(logits: Tensor, classes: Sequence[int]) -> Tensor:
    """Set all columns but those of `classes` to -inf."""
    index = label_index(classes, logits.device)
    kept = logits.index_select(1, index)
    return torch.full_like(logits, -torch.inf).index_copy(1, index, kept)


def read_samples(data: Any, indices: Iterable[int]) -> tuple[Tensor, Tensor]:
    """Return images (N, ...) and labels int64 (N,) of a data set of Avalanche, on the CPU."""
    images, labels = zip(*(data[index][:2] for index in indices), strict=True)
    return torch.stack(images), torch.tensor(labels)


def label_index(classes: Sequence[int], device: torch.device) -> Tensor:
    """Return labels as an index (C,) on a device; recent indices are cached there.

    `torch.tensor(classes, device=...)` and indexing with a list would wait for the device in every
    step.
    """
    return _label_index(tuple(classes), device)


@lru_cache(maxsize=64)
def _label_index(classes: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(classes, dtype=torch.long).to(device, non_blocking=True)


@dataclass
class StepFeatures:
    """The features that one training step encoded, with gradients.

    Attributes:
        image: (B, d), unit length.
        text: (C, d), unit length, one row for each of `classes`.
        classes: labels of the rows of `text`.
        raw_text: `text` before normalisation; None if the method does not encode text.
    """

    image: Tensor
    text: Tensor
    classes: list[int]
    raw_text: Tensor | None = None


@dataclass(frozen=True)
class Workload:
    """The cost of a task, for the progress bar and the estimate.

    Attributes:
        epochs: epochs of optimiser steps.
        passes: forward and backward passes over the task's images.
        test_passes: passes over the test images after the task.
        sampled: passes over a sample of the task's images without gradients, and the most images
            that the sample holds.
        tasks: number of tasks, the first ones, that have these epochs and passes; None for all.
    """

    epochs: int
    passes: float
    test_passes: int = 1
    sampled: tuple[tuple[int, int], ...] = ()
    tasks: int | None = None
