"""Fuse the scores of two classifiers with powers that held-out losses choose, summed over tasks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

POWERS = tuple(2.0**exponent for exponent in range(-6, 5))


def fused(first: Tensor, second: Tensor, powers: tuple[float, float]) -> Tensor:
    """Return a z_1 + b z_2 (N, K); a class that either excludes (-inf) stays excluded."""
    return _scaled(first, powers[0]) + _scaled(second, powers[1])


def _scaled(scores: Tensor, power: float) -> Tensor:
    return scores * power if power else scores.masked_fill(scores.isfinite(), 0.0)


def loss_table(
    first: Tensor, second: Tensor, labels: Tensor, powers: Sequence[float] = POWERS
) -> Tensor:
    """Return the sum over images of the cross-entropy of a z_1 + b z_2, for all pairs of powers.

    Tables of several tasks are added; `best_powers` chooses from the sum.

    Args:
        first: scores (N, K) of images that the first classifier has not learned from.
        second: scores (N, K) of the same images, likewise.
        labels: (N,).
        powers: the grid, for a and b alike.

    Returns:
        fp64 (len(powers), len(powers)), a by row and b by column.
    """
    one, two = (
        torch.stack([_scaled(scores.double(), power) for power in powers])
        for scores in (first, second)
    )
    rows = []
    for scaled in one:  # all sums at once would be large
        sums = scaled + two
        right = sums[:, torch.arange(len(labels)), labels]
        rows.append((sums.logsumexp(2) - right).sum(1))
    return torch.stack(rows)


def best_powers(table: Tensor, powers: Sequence[float] = POWERS) -> tuple[float, float]:
    """Return the pair (a, b) with the smallest loss of a table; of equal ones the first.

    Raises:
        ValueError: no loss is finite.

    Example:
        >>> best_powers(torch.tensor([[3.0, 1.0], [2.0, 4.0]]), [0.5, 1.0])
        (0.5, 1.0)
    """
    losses = table.nan_to_num(nan=math.inf, posinf=math.inf)
    index = int(losses.argmin())
    if not losses.flatten()[index].isfinite():
        raise ValueError("no pair of powers has a finite loss")
    return powers[index // len(powers)], powers[index % len(powers)]
