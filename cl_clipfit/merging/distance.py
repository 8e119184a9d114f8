"""Distances between sets of values, in units of the distance to a reference, and steps on them.

The scales of parameters differ (LayerNorm weights near 1, small biases), and so do their changes.
Relative to how far a reference moved, a single weight fits every group of tensors.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_clipfit.merging.combine import Values, aligned


def distance(
    values: Values,
    anchor: Values,
    reference: Values,
    groups: Mapping[str, str],
    fisher: Values | None = None,
    floor: float = 1e-12,
) -> Tensor:
    """Return sum over groups g of ||w_g - a_g||^2 / ||r_g - a_g||^2; a scalar with gradients.

    It is 0 at the anchor, and at the reference the number of groups that the reference moved.

    Args:
        values: w, by name.
        anchor: a, as in `coefficients`, like what follows.
        reference: r.
        groups: of the tensors.
        fisher: weights of the entries, instead of the groups' scales.
        floor: lower bound on the squared unit.

    Example:
        >>> anchor = {"a": torch.zeros(2), "b": torch.zeros(1)}
        >>> reference = {"a": torch.ones(2), "b": torch.full((1,), 0.01)}
        >>> distance(reference, anchor, reference, {"a": "gains", "b": "biases"})
        tensor(2.)
    """
    scales = coefficients(anchor, reference, groups, fisher, floor)
    values, anchor = aligned(values, anchor)
    parts = [(scales[n] * (value - anchor[n]).square()).sum() for n, value in values.items()]
    return torch.stack(parts).sum()


@torch.no_grad()
def coefficients(
    anchor: Values,
    reference: Values,
    groups: Mapping[str, str],
    fisher: Values | None = None,
    floor: float = 1e-12,
) -> dict[str, Tensor]:
    """Return c, by name, of the relative distance sum c (w - a)^2.

    Without a Fisher, c is 1 / max(||r_g - a_g||^2, floor) for every tensor of a group g. With one,
    it is G F / max(sum F (r - a)^2, floor) for every entry: the diagonal Fisher gives the tensors
    their scale (Kirkpatrick et al. 2017, EWC, arXiv 1612.00796), so that a single quotient over all
    of them suffices, and with G, the number of groups, the distance of the reference is the same.

    Args:
        anchor: a, by name.
        reference: r, with the same names and shapes; its distance is the unit.
        groups: the group of every tensor, as {name: group}; additional names are ignored.
        fisher: F, likewise, not negative; divided by its mean over all entries, so that the floor
            is in the unit of the values.
        floor: lower bound on the squared unit. It limits the cost in a group that the reference
            hardly moved: at 1e-12, a change of 1e-6 costs 1.

    Returns:
        scalars, or with a Fisher tensors of the anchor's shapes.

    Raises:
        ValueError: names or shapes differ, there are none, a tensor has no group, the floor is not
            above 0, or the mean of the Fisher is not above 0.
    """
    squares = group_squares(anchor, reference, groups, floor)
    if not squares:
        raise ValueError("no values given: there is no distance to measure")
    if fisher is None:
        return {name: 1 / squares[groups[name]] for name in anchor}
    anchor, reference, fisher = aligned(anchor, reference, fisher)
    mean = torch.stack([f.sum() for f in fisher.values()]).sum()
    mean = mean / sum(value.numel() for value in anchor.values())
    if not mean > 0:
        raise ValueError(f"the Fisher's mean is {float(mean)}: it must be above 0")
    weights = {name: f / mean for name, f in fisher.items()}
    moved = [(f * (reference[n] - anchor[n]).square()).sum() for n, f in weights.items()]
    unit = torch.stack(moved).sum().clamp(min=floor)
    return {name: len(squares) * f / unit for name, f in weights.items()}


@torch.no_grad()
def group_squares(
    anchor: Values, reference: Values, groups: Mapping[str, str], floor: float = 1e-12
) -> dict[str, Tensor]:
    """Return max(||r_g - a_g||^2, floor) of every group g; arguments as in `coefficients`."""
    if not floor > 0:
        raise ValueError(f"floor {floor} must be above 0")
    parts: dict[str, list[Tensor]] = {}
    anchor, reference = aligned(anchor, reference)
    for name, value in anchor.items():
        if name not in groups:
            raise ValueError(f"tensor {name} does not belong to a group")
        parts.setdefault(groups[name], []).append((reference[name] - value).square().sum())
    return {group: torch.stack(squares).sum().clamp(min=floor) for group, squares in parts.items()}


@dataclass(frozen=True, eq=False)
class Pull:
    """A pull towards an anchor: sum rates (w - anchor)^2.

    Attributes:
        anchor: a, by name.
        rates: by name, a scalar or of the tensor's shape, not negative.
    """

    anchor: Values
    rates: Values


@torch.no_grad()
def proximal_step(values: Values, pulls: Sequence[Pull], size: float) -> dict[str, Tensor]:
    """Return argmin over x of sum_k sum r_k (x - a_k)^2 + sum (x - v)^2 / size.

    The proximal operator (Parikh and Boyd 2014, Proximal Algorithms, section 1.1) of the pulls.
    Setting the derivative of every entry to 0 gives x = v + sum_k s_k (a_k - v) with shares
    s_k = size r_k / (1 + size sum_j r_j): a weighted mean of where the values are and the anchors.
    It never overshoots, and an entry at all anchors stays bit for bit.

    Args:
        values: v, by name.
        pulls: with the same names and shapes.
        size: above 0; the larger, the closer to the minimiser of the pulls alone.

    Example:
        >>> pull = Pull({"w": torch.ones(2)}, {"w": torch.tensor(3.0)})
        >>> proximal_step({"w": torch.zeros(2)}, [pull], size=1.0)
        {'w': tensor([0.7500, 0.7500])}
    """
    values, *anchors = aligned(values, *(pull.anchor for pull in pulls))
    result = {}
    for name, value in values.items():
        weights = [size * pull.rates[name] for pull in pulls]
        whole = 1 + sum(weights)
        result[name] = value.clone()
        for anchor, weight in zip(anchors, weights, strict=True):
            result[name] += weight / whole * (anchor[name] - value)
    return result


def difference(values: Values, start: Values) -> dict[str, Tensor]:
    """Return values - start in fp64 on the CPU, without gradients."""
    ends, starts = (
        {n: v.detach().cpu().double() for n, v in side.items()} for side in aligned(values, start)
    )
    return {name: value - starts[name] for name, value in ends.items()}


def dot(one: Values, other: Values) -> float:
    """Return the inner product over all tensors together, summed in fp64."""
    return float(sum((v.cpu().double() * other[n].cpu().double()).sum() for n, v in one.items()))


def length(values: Values) -> float:
    """Return the Euclidean length over all tensors together."""
    return math.sqrt(dot(values, values))


def length_ratio(values: Values, start: Values, end: Values) -> float:
    """Return ||w - s|| / ||e - s|| over all tensors together.

    On the segment from start to end it is the position alpha. If the end equals the start, it is 0
    if the values equal them too, else infinite.

    Example:
        >>> start, end = {"w": torch.zeros(2)}, {"w": torch.tensor([0.0, 4.0])}
        >>> length_ratio({"w": torch.tensor([3.0, 0.0])}, start, end)
        0.75
    """
    moved, whole = length(difference(values, start)), length(difference(end, start))
    if whole == 0:
        return math.inf if moved else 0.0
    return moved / whole


def direction_cosine(values: Values, start: Values, end: Values) -> float | None:
    """Return cos(w - s, e - s) over all tensors together; None if either is 0."""
    moved, whole = difference(values, start), difference(end, start)
    lengths = length(moved) * length(whole)
    return max(-1.0, min(1.0, dot(moved, whole) / lengths)) if lengths else None
