"""Merge layers by least squares on their inputs: RegMean for LayerNorms and biases.

As in `combine.py`, sets have the same names and shapes and stay unchanged, and the results are new
fp32 tensors by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_clipfit.merging.combine import Values, interpolate, tensors_of

_SINGULAR = 1e-6  # relative determinant that is within the rounding of fp32 moments


@dataclass(frozen=True)
class Moments:
    """The inputs of a task's LayerNorms, y = gamma * xhat + beta.

    Attributes:
        images: number of training images of the task, at least 1.
        means: E xhat by name of the LayerNorm, each of the shape of its weight.
        squares: E xhat^2, likewise.
    """

    images: int
    means: Values
    squares: Values


@torch.no_grad()
def pooled_moments(one: Moments, other: Moments) -> Moments:
    """Return the moments of the images of both, which stand for them in a later merge.

    Exact for the fit: the sum of A_t in `regmean` is that of the pooled moments, and its product
    with the fit is the sum of A_t w_t.
    """
    images = one.images + other.images
    means, squares = (
        interpolate(first, second, other.images / images)
        for first, second in ((one.means, other.means), (one.squares, other.squares))
    )
    return Moments(images, means, squares)


@torch.no_grad()
def regmean(
    values: Sequence[Values], moments: Sequence[Moments], off_diagonal: float = 0.9
) -> dict[str, Tensor]:
    """Return (sum_t A_t)^-1 sum_t A_t w_t: RegMean, Jin et al. 2023, arXiv 2212.09849, eq. 2.

    A merged layer is the least-squares fit to the outputs of every task's layer on that task's
    inputs. A LayerNorm gamma * xhat + beta is linear in w = (gamma, beta), channel by channel:
    A_t = n_t [[E xhat^2, a E xhat], [a E xhat, 1]] for n_t images. For a bias alone, A_t = n_t: the
    mean weighted by images, which all other parameters get too.

    Args:
        values: w_t, one set per task.
        moments: at w_t, in the same order, of the same LayerNorms; a LayerNorm counts if both its
            weight and its bias are among the values.
        off_diagonal: a, from 0 to 1. With 1 it is the least-squares fit itself. But a channel whose
            input hardly varies within a task has an almost singular sum, and a fit through the
            tasks' means extrapolates; so the paper shrinks by 0.9. If a sum is singular
            nonetheless, the channel gets the mean weighted by images.

    Raises:
        ValueError: the numbers of moments and of values differ, a moment is NaN or infinite, or
            `off_diagonal` is not from 0 to 1.
    """
    if len(values) != len(moments):
        raise ValueError(
            f"{len(values)} sets of values with {len(moments)} moments: pass one per set"
        )
    if not 0 <= off_diagonal <= 1:
        raise ValueError(f"off_diagonal {off_diagonal} must be from 0 to 1")
    images = [task.images for task in moments]
    shares = [count / sum(images) for count in images]
    merged = {}
    for name, tensors in tensors_of(*values):
        start = tensors[0]  # equal tensors stay as they are, bit for bit
        merged[name] = start + sum(s * (t - start) for s, t in zip(shares, tensors, strict=True))
    means, squares = [task.means for task in moments], [task.squares for task in moments]
    for norm, tensors in tensors_of(*means, *squares):
        known = torch.stack(tensors).cpu().double().unflatten(0, (2, -1))
        if not known.isfinite().all():
            raise ValueError(f"the moments of {norm} are NaN or infinite")
        pair = f"{norm}.weight", f"{norm}.bias"
        if all(name in merged for name in pair):
            center = torch.stack([merged[name].cpu().double() for name in pair])
            tuned = torch.stack([torch.stack([v[n].cpu().double() for v in values]) for n in pair])
            fitted = center + _fit(tuned - center[:, None], known, shares, off_diagonal)
            merged |= {n: value.to(merged[n]) for n, value in zip(pair, fitted, strict=True)}
    return merged


def _fit(tuned: Tensor, moments: Tensor, shares: Sequence[float], off_diagonal: float) -> Tensor:
    """Solve the sums of a LayerNorm, two equations per channel.

    Args:
        tuned: the weights and the biases of the tasks, (2, tasks, *shape), in fp64.
        moments: means and squares, likewise.
        shares: of the tasks in all images; their sum is 1.
        off_diagonal: see `regmean`.

    Returns:
        weight and bias, (2, *shape); 0 in channels with singular sums.
    """
    share = moments.new_tensor(shares).view(-1, *[1] * (moments.dim() - 2))
    mixed, square = off_diagonal * share * moments[0], share * moments[1]
    weights, biases = tuned
    first = (square * weights + mixed * biases).sum(0)
    second = (mixed * weights + share * biases).sum(0)
    mixed, square = mixed.sum(0), square.sum(0)
    determinant = square - mixed.square()
    solved = torch.stack([first - mixed * second, square * second - mixed * first]) / determinant
    return torch.where(determinant > _SINGULAR * square, solved, 0.0)
