"""Straight lines and planes through values, and the loss along them."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cl_clipfit.merging.combine import Values, aligned, interpolate
from cl_clipfit.merging.distance import difference, dot, length

_RULE = re.compile(r"uniform|(midpoints|grid)-([1-9]\d?|100)")


def check_path_rule(rule: str) -> str:
    """Return the rule unchanged if it is valid for `path_positions`.

    Raises:
        ValueError: it is not valid.
    """
    if not _RULE.fullmatch(rule):
        raise ValueError(f"path rule {rule!r} must be uniform, midpoints-N or grid-N, N 1 to 100")
    return rule


def path_positions(rule: str, generator: torch.Generator) -> list[float]:
    """Return the positions on a path at which a training step evaluates the loss.

    Args:
        rule: "uniform", one draw from U[0, 1); "midpoints-N", the midpoints of N equal parts of
            [0, 1]; or "grid-N", from 0.1 in steps of 1/N, as in the code released with MERGETUNE
            (arXiv 2601.10497). That grid has one point for N = 1, 14 for N = 15, and for some N,
            starting at 11, its last point lies up to 0.01 beyond 1.
        generator: generator of the draw; the other rules do not use it.

    Example:
        >>> path_positions("midpoints-4", torch.Generator())
        [0.125, 0.375, 0.625, 0.875]
    """
    kind, _, count = check_path_rule(rule).partition("-")
    if kind == "uniform":
        # In fp64, since an exact 0, where the loss has no gradient, is not that rare in fp32.
        device = generator.device
        return [torch.rand((), generator=generator, dtype=torch.float64, device=device).item()]
    n = int(count)
    if kind == "midpoints":
        return [(i + 0.5) / n for i in range(n)]
    return np.arange(0.1, 1.01, 1 / n).tolist()


def barrier(losses: Sequence[float]) -> float:
    """Return how far a path rises above the straight line between the losses at its ends.

    max over alpha of L(alpha) - [(1 - alpha) L(0) + alpha L(1)], as in Entezari et al. 2022
    (arXiv 2110.06296); Frankle et al. 2020 (arXiv 1912.05671) subtract the mean of the two ends
    everywhere. It is at least 0, its value at the ends.

    Args:
        losses: losses at equally spaced points, including both ends.

    Raises:
        ValueError: there are fewer than two losses, or one is NaN or infinite.

    Example:
        >>> barrier([1.0, 4.0, 3.0])
        2.0
    """
    if len(losses) < 2:
        raise ValueError(f"a path has at least its two ends: {len(losses)} losses given")
    for i, loss in enumerate(losses):
        if not math.isfinite(loss):
            raise ValueError(f"the loss at point {i} of the path is {loss}")
    first, last, steps = losses[0], losses[-1], len(losses) - 1
    inner = range(1, steps)
    return max([0.0, *(losses[i] - (first + (last - first) * i / steps) for i in inner)])


def segment(
    start: Values, end: Values, points: int = 11
) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """Return alpha and the interpolated values at equally spaced points, from start to end.

    Args:
        start: values at alpha = 0.
        end: values at alpha = 1.
        points: at least 2, for both ends.
    """
    if points < 2:
        raise ValueError(f"points {points} must be at least 2: both ends belong to the segment")
    start, end = aligned(start, end)
    positions = (i / (points - 1) for i in range(points))
    return ((alpha, interpolate(start, end, alpha)) for alpha in positions)


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane through three points, in units of ||first - origin||; see `plane`.

    Attributes:
        origin: the point (0, 0), by name.
        u: direction from the origin to the first point, of unit length over all tensors.
        v: unit direction towards the second point, orthogonal to u.
        u_length: distance of the first point, which is at (1, 0), from the origin.
        v_length: distance of the second point from the line along u.
    """

    origin: dict[str, Tensor]
    u: dict[str, Tensor]
    v: dict[str, Tensor]
    u_length: float
    v_length: float

    def values(self, x: float, y: float) -> dict[str, Tensor]:
        """Return the values at a point, fp32."""
        x, y = x * self.u_length, y * self.u_length
        return {n: o + x * self.u[n] + y * self.v[n] for n, o in self.origin.items()}

    def coordinates(self, values: Values) -> tuple[float, float]:
        """Return (x, y) of values, projected onto the plane."""
        moved = difference(values, self.origin)
        return dot(moved, self.u) / self.u_length, dot(moved, self.v) / self.u_length


def plane(origin: Values, first: Values, second: Values) -> Plane:
    """Return the plane through three points, as Garipov et al. 2018 (arXiv 1802.10026) draw it.

    u = first - origin; v = second - origin, made orthogonal to u over all tensors together.

    Raises:
        ValueError: names or shapes differ, or the points are equal or collinear up to the
            rounding of fp32.
    """
    origin, first, second = aligned(origin, first, second)
    u, to_second = difference(first, origin), difference(second, origin)
    # The rounding error of fp32 values: shorter differences have no meaningful direction.
    rounding = 4 * torch.finfo(torch.float32).eps
    rounding *= max(length(point) for point in (origin, first, second))
    u_length = length(u)
    if u_length <= rounding:
        raise ValueError("no plane: the first point equals the origin")
    u = {n: value / u_length for n, value in u.items()}
    share = dot(to_second, u)
    v = {n: value - share * u[n] for n, value in to_second.items()}
    v_length = length(v)
    if v_length <= rounding:
        raise ValueError("no plane: the three points are collinear")
    return Plane(
        {n: value.detach().clone() for n, value in origin.items()},
        {n: value.float() for n, value in u.items()},
        {n: (value / v_length).float() for n, value in v.items()},
        u_length,
        v_length,
    )
