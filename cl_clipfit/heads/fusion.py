"""Fuse the scores of two classifiers with powers that held-out losses choose, summed over tasks."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALL = 1e-200  # of a sum of products of exponentials; far above where fp64 loses digits
POWERS = tuple(2.0**exponent for exponent in range(-6, 5))


def fused(first: Tensor, second: Tensor, powers: tuple[float, float]) -> Tensor:
    """Return a z_1 + b z_2 (N, K); a class that either excludes (-inf) stays excluded."""
    return _scaled(first, powers[0]) + _scaled(second, powers[1])


def _scaled(scores: Tensor, power: float) -> Tensor:
    return scores * power if power else scores.masked_fill(scores.isfinite(), 0.0)


def reranked(scores: Tensor, order: Tensor, members: Tensor) -> Tensor:
    """Return scores (N, C) with the columns of members ranked by another order.

    Their largest score stays as it is, and so do all other columns: whether the best column is a
    member, and which one it is otherwise, is decided by `scores` in any set of columns that
    contains the members.

    Args:
        scores: (N, C).
        order: (N, M), one column for each member; differences between them are kept.
        members: bool (C,).

    Example:
        >>> scores, members = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([True, True, False])
        >>> reranked(scores, torch.tensor([[0.5, 1.0]]), members)
        tensor([[2.5000, 3.0000, 2.0000]])
    """
    result = scores.clone()
    level = scores[:, members].amax(1, keepdim=True)
    result[:, members] = order - order.amax(1, keepdim=True) + level
    return result


def add_namesakes(scores: Tensor, same: Tensor) -> Tensor:
    """Return log-probabilities (N, K + P) of names: a class and another of its name have the sum.

    Args:
        scores: (N, K + P) log-probabilities of K classes and P other names.
        same: bool (K, P), which of them have one name; two classes are never taken for one.

    Example:
        >>> log = torch.tensor([[0.2, 0.5, 0.3]]).log()  # of two classes and another name
        >>> add_namesakes(log, torch.tensor([[True], [False]])).exp()
        tensor([[0.5000, 0.5000, 0.5000]])
    """
    labels, names = same.any(1), same.any(0)
    peak = scores.amax(1, keepdim=True)
    of_class, of_name = scores.split([len(same), scores.shape[1] - len(same)], 1)
    joins = same[labels][:, names].to(scores)
    shared = of_class[:, labels], of_name[:, names]
    own, other = ((part - peak).exp() for part in shared)
    result = scores.clone()
    result[:, : len(same)][:, labels] = torch.logaddexp(shared[0], (other @ joins.T).log() + peak)
    result[:, len(same) :][:, names] = torch.logaddexp(shared[1], (own @ joins).log() + peak)
    return result


def loss_tables(
    first: Tensor, seconds: Iterable[Tensor], labels: Tensor, powers: Sequence[float] = POWERS
) -> Tensor:
    """Return the sum over images of the cross-entropy of a z_1 + b z_2, for all pairs of powers.

    Tables of several tasks are added; `best_powers` chooses from the sum.

    Args:
        first: scores (N, K) of images that the first classifier has not learned from.
        seconds: scores (N, K) of the same images by T others, likewise.
        labels: (N,).
        powers: the grid of P, for a and b alike.

    Returns:
        fp64 (T, P, P) in nats, a by row and b by column; to ten decimals, so that of powers that
        are equally good rounding errors do not choose.
    """
    every, one = torch.arange(len(labels)), _Scaled.of(first, powers)
    own = (one.peaks - one.scores[every, :, labels])[:, :, None]
    tables = []
    for second in seconds:
        two = _Scaled.of(second, powers)
        # The sum of exp(a z_1) exp(b z_2) over classes, for all pairs of powers, is a product of
        # matrices: far fewer exponentials than one per pair.
        sums = one.exponentials @ two.exponentials.mT
        other = (two.peaks - two.scores[every, :, labels])[:, None, :]
        losses = (sums.log() + own + other).sum(0)
        for i, j in (sums < _SMALL).any(0).nonzero().tolist():  # large powers: it underflows
            scores = one.scores[:, i] + two.scores[:, j]
            losses[i, j] = F.cross_entropy(scores, labels, reduction="sum")
        tables.append(losses.round(decimals=10))
    return torch.stack(tables)


class _Scaled(NamedTuple):
    """Scores times P powers, fp64 (N, P, K); their largest (N, P); exp(scores - largest)."""

    scores: Tensor
    peaks: Tensor
    exponentials: Tensor

    @classmethod
    def of(cls, scores: Tensor, powers: Sequence[float]) -> "_Scaled":
        scaled = torch.stack([_scaled(scores.double(), power) for power in powers], 1)
        peaks = scaled.amax(2)
        return cls(scaled, peaks, (scaled - peaks[..., None]).exp())


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
