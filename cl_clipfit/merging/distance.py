"""Distances between sets of values, in units of the distance to a reference.

The scales of parameters differ (LayerNorm weights near 1, small biases), and so do their changes.
Relative to how far a reference moved, a single weight fits every group of tensors.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cl_clipfit.merging.combine import Values, aligned


def group_distances(
    values: Values,
    anchor: Values,
    reference: Values,
    groups: Mapping[str, str],
    floor: float = 1e-12,
) -> dict[str, Tensor]:
    """Return ||w_g - a_g||^2 / max(||r_g - a_g||^2, floor) of every group g, with gradients.

    Args:
        values: w, by name.
        anchor: a, with the same names and shapes.
        reference: r, likewise; how far it is from the anchor is the unit of every group.
        groups: the group of every tensor, as {name: group}; additional names are ignored.
        floor: lower bound on the squared unit. It limits the cost in a group that the reference
            hardly moved: at 1e-12, a change of 1e-6 costs 1.

    Returns:
        one scalar per group, in the order of the values.

    Raises:
        ValueError: names or shapes differ, a tensor has no group, or the floor is not above 0.
    """
    units = _units(anchor, reference, groups, floor)
    return _by_group(values, anchor, groups, units)


def distance(
    values: Values,
    anchor: Values,
    reference: Values,
    groups: Mapping[str, str],
    floor: float = 1e-12,
) -> Tensor:
    """Return the sum of `group_distances`; a scalar with gradients.

    It is 0 at the anchor, and at the reference the number of groups that the reference moved.

    Example:
        >>> anchor = {"a": torch.zeros(2), "b": torch.zeros(1)}
        >>> reference = {"a": torch.ones(2), "b": torch.full((1,), 0.01)}
        >>> distance(reference, anchor, reference, {"a": "gains", "b": "biases"})
        tensor(2.)
    """
    return relative_distance(anchor, reference, groups, floor=floor)(values)


def fisher_distance(
    values: Values,
    anchor: Values,
    reference: Values,
    fisher: Values,
    groups: Mapping[str, str],
    floor: float = 1e-12,
) -> Tensor:
    """Return G sum F (w - a)^2 / max(sum F (r - a)^2, floor); a scalar with gradients.

    The diagonal Fisher gives the tensors their scale (Kirkpatrick et al. 2017, EWC, arXiv
    1612.00796), so a single quotient over all of them suffices. With G, the number of groups, a
    weight means the same as in `distance`: at the reference both are G.

    Args:
        values: w, by name.
        anchor: a, with the same names and shapes.
        reference: r, likewise; it sets the unit.
        fisher: F, likewise, not negative; divided by its mean over all entries, so that the floor
            is in the unit of the values.
        groups: the group of every tensor, only counted here.
        floor: lower bound on the squared unit.

    Raises:
        ValueError: names or shapes differ, a tensor has no group, the floor is not above 0, or the
            mean of the Fisher is not above 0.
    """
    return relative_distance(anchor, reference, groups, fisher, floor)(values)


def relative_distance(
    anchor: Values,
    reference: Values,
    groups: Mapping[str, str],
    fisher: Values | None = None,
    floor: float = 1e-12,
) -> Callable[[Values], Tensor]:
    """Return `distance`, or `fisher_distance` if a Fisher is given, as a function of the values.

    Units and scale are computed only once, here.

    Args:
        anchor: as in `distance`.
        reference: likewise.
        groups: likewise.
        fisher: as in `fisher_distance`.
        floor: as in `distance`.

    Raises:
        ValueError: as these two; the returned function, if names or shapes of the values differ.
    """
    units = _units(anchor, reference, groups, floor)
    if not units:
        raise ValueError("no values given: there is no distance to measure")
    if fisher is None:
        return lambda values: torch.stack(
            list(_by_group(values, anchor, groups, units).values())
        ).sum()
    anchor, reference, fisher = aligned(anchor, reference, fisher)
    entries = sum(value.numel() for value in anchor.values())
    scale = torch.stack([f.sum() for f in fisher.values()]).sum() / entries
    if not scale > 0:
        raise ValueError(f"the Fisher's mean is {float(scale)}: it must be above 0")
    weights = {name: f / scale for name, f in fisher.items()}
    unit = _weighted(reference, anchor, weights).clamp(min=floor)
    count = len(units)
    return lambda values: count * _weighted(values, anchor, weights) / unit


def _units(
    anchor: Values, reference: Values, groups: Mapping[str, str], floor: float
) -> dict[str, Tensor]:
    """Return max(||r_g - a_g||^2, floor) of every group g."""
    _check(anchor, groups, floor)
    return {g: u.clamp(min=floor) for g, u in _squares(anchor, reference, groups).items()}


def _by_group(
    values: Values, anchor: Values, groups: Mapping[str, str], units: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    return {g: moved / units[g] for g, moved in _squares(values, anchor, groups).items()}


def _squares(values: Values, anchor: Values, groups: Mapping[str, str]) -> dict[str, Tensor]:
    """Return ||w_g - a_g||^2 of every group g, in the order of the values."""
    parts: dict[str, list[Tensor]] = {}
    values, anchor = aligned(values, anchor)
    for name, value in values.items():
        parts.setdefault(groups[name], []).append((value - anchor[name]).square().sum())
    return {group: torch.stack(squares).sum() for group, squares in parts.items()}


def _weighted(values: Values, anchor: Values, weights: Values) -> Tensor:
    """Return sum F (w - a)^2 over all tensors."""
    values, anchor, weights = aligned(values, anchor, weights)
    parts = [(f * (values[n] - anchor[n]).square()).sum() for n, f in weights.items()]
    return torch.stack(parts).sum()


def _check(values: Values, groups: Mapping[str, str], floor: float) -> None:
    if not floor > 0:
        raise ValueError(f"floor {floor} must be above 0")
    for name in values:
        if name not in groups:
            raise ValueError(f"tensor {name} does not belong to a group")


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
