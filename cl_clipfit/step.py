"""What a step of a strategy encodes, what a task costs, and how labels are narrowed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def keep_columns(logits: Tensor, classes: Sequence[int]) -> Tensor:
    """Set all columns but those of `classes` to -inf."""
    index = torch.tensor(list(classes), device=logits.device)
    return torch.full_like(logits, -torch.inf).index_copy(1, index, logits[:, index])


@dataclass
class StepFeatures:
    """What one training step encoded, with gradients.

    Attributes:
        image: (B, d), unit length.
        text: (C, d), unit length, one row for each of `classes`.
        classes: labels of the rows of `text`.
        raw_text: `text` before it was brought to unit length; None where nothing like it exists.
    """

    image: Tensor
    text: Tensor
    classes: list[int]
    raw_text: Tensor | None = None


@dataclass(frozen=True)
class Workload:
    """What a task costs, for the progress bar and the estimate.

    Attributes:
        epochs: epochs of optimiser steps.
        passes: forward and backward passes over the task's images.
        test_passes: passes over the test images after the task.
        sampled_images: images encoded besides, without gradients.
    """

    epochs: int
    passes: float
    test_passes: int = 1
    sampled_images: int = 0
