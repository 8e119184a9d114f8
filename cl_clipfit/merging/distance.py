"""How far values are from others, in units of a reference move.

The scales of parameters differ (gains near 1, small biases), and so do their moves. Measured
against how far a reference moved, one weight fits every group of tensors.
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
        groups: the group of every tensor, as {name: group}; further names are ignored.
        floor: least squared unit. A group that the reference hardly moved is held this firmly:
            at 1e-12, a move of 1e-6 costs 1.

    Returns:
        a scalar for each group, in the order of the values.

    Raises:
        ValueError: other names or shapes, a tensor without a group, or a floor not above 0.
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
    1612.00796), so that one quotient over all of them does. G, the number of groups, makes a
    weight mean the same as in `distance`: at the reference both are G.

    Args:
        values: w, by name.
        anchor: a, with the same names and shapes.
        reference: r, likewise; it sets the unit.
        fisher: F, likewise, not negative; divided by its mean over all entries, for the floor
            to be in the unit of the values.
        groups: the group of every tensor, only counted here.
        floor: least squared unit.

    Raises:
        ValueError: other names or shapes, a tensor without a group, a floor not above 0, or a
            Fisher whose mean is not above 0.
    """
    return relative_distance(anchor, reference, groups, fisher, floor)(values)


def relative_distance(
    anchor: Values,
    reference: Values,
    groups: Mapping[str, str],
    fisher: Values | None = None,
    floor: float = 1e-12,
) -> Callable[[Values], Tensor]:
    """Return `distance`, or with a Fisher `fisher_distance`, as a function of the values alone.

    Units and scale are computed here, once for however many values are measured.

    Args:
        anchor: as in `distance`.
        reference: likewise.
        groups: likewise.
        fisher: as in `fisher_distance`.
        floor: as in `distance`.

    Raises:
        ValueError: as these two; the function, for values with other names or shapes.
    """
    units = _units(anchor, reference, groups, floor)
    if not units:
        raise ValueError("no values given: there is nothing to measure a distance of")
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
    return {group: torch.stack(own).sum() for group, own in parts.items()}


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
            raise ValueError(f"tensor {name} is in no group")


def difference(values: Values, start: Values) -> dict[str, Tensor]:
    """Return values - start in fp64 on the CPU, without gradients."""
    ends, starts = (
        {n: v.detach().cpu().double() for n, v in some.items()} for some in aligned(values, start)
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

    On the segment from start to end it is the position alpha. Where the end equals the start it
    is 0 if the values equal them too, else infinite.

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
    """Return cos(w - s, e - s) over all tensors together; None where one of them is 0."""
    moved, whole = difference(values, start), difference(end, start)
    lengths = length(moved) * length(whole)
    return max(-1.0, min(1.0, dot(moved, whole) / lengths)) if lengths else None
