"""Infer the task of an image from its zero-shot feature, so that no task label is needed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Rule = Literal["nearest-mean", "gaussian"]
_ROWS = 1 << 16  # features that are summed at a time
_DISTANCES = 1 << 24  # from images to classes, in memory at a time: 128 MB


@torch.no_grad()
def class_statistics(features: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Summarise a task's training images as the statistics that `route` needs.

    Args:
        features: (N, d), of the pretrained image tower, as later given to `route` (unit length).
        labels: (N,) of integers.

    Returns:
        "labels" (C,) in ascending order and "counts" (C,), int64; "means" (C, d) of each class and
        "scatter" (d, d), the sum of the outer products of all deviations from the mean of their
        class, float32 but accumulated in float64. All on the CPU.

    Raises:
        ValueError: no features, or a number of labels that differs.
    """
    if features.ndim != 2 or not len(features) or labels.shape != features.shape[:1]:
        raise ValueError(
            f"expected features (N, d) and labels (N,) with N > 0, got {[*features.shape]} and"
            f" {[*labels.shape]}"
        )
    features, labels = features.cpu(), labels.cpu().long()
    classes, places, counts = labels.unique(return_inverse=True, return_counts=True)
    width = features.shape[1]
    means = torch.zeros(len(classes), width, dtype=torch.float64)
    scatter = torch.zeros(width, width, dtype=torch.float64)
    # A number of rows at a time, whatever their classes: a task may have very many of these.
    pieces = list(zip(features.split(_ROWS), places.split(_ROWS), strict=True))
    for rows, place in pieces:
        means.index_add_(0, place, rows.double())
    means /= counts[:, None]
    for rows, place in pieces:
        centred = rows.double() - means[place]
        scatter += centred.T @ centred
    return {
        "labels": classes,
        "counts": counts,
        "means": means.float(),
        "scatter": scatter.float(),
    }


@torch.no_grad()
def route(
    features: Tensor,
    statistics: Sequence[Mapping[str, Tensor]],
    rule: Rule = "nearest-mean",
    shrinkage: float = 0.1,
) -> Tensor:
    """Choose the task of every image by its nearest class.

    "nearest-mean" takes the class mean of largest cosine similarity. On features of unit length it
    agrees with scikit-learn's `NearestCentroid` if all means have the same length; in general it is
    `NearestCentroid` with the means scaled to unit length. "gaussian" takes the class mean of
    smallest Mahalanobis distance, under one covariance S shared by all classes of all tasks (Lee
    et al. 2018, arXiv 1807.03888): pooled scatter / (N - C), shrunk to (1-s) S + s tr(S)/d I.

    Args:
        features: (N, d), of the kind given to `class_statistics`.
        statistics: the results of `class_statistics`, one per task.
        rule: how to compare.
        shrinkage: s in [0, 1], for "gaussian" only.

    Returns:
        (N,), int64: positions in `statistics`, from 0, on the device of the features.

    Raises:
        ValueError: no statistics, a different width, an unknown rule, or a singular covariance.
    """
    return TaskRouter(statistics, rule, shrinkage).route(features)


@torch.no_grad()
def task_posterior(
    features: Tensor, statistics: Sequence[Mapping[str, Tensor]], shrinkage: float = 0.1
) -> Tensor:
    """Return the probability of every task, given the features of an image.

    That of its classes, summed, under Gaussians that share the covariance of the rule "gaussian",
    where all classes are equally likely.

    Args:
        features: (N, d), as in `route`.
        statistics: likewise, one per task.
        shrinkage: of the covariance.

    Returns:
        (N, tasks), float32, rows of sum 1, on the device of the features.

    Raises:
        ValueError: as in `route`.
    """
    return TaskRouter(statistics, "gaussian", shrinkage).posterior(features)


class TaskRouter:
    """What `route` and `task_posterior` compare with, made once for any number of images.

    Of each task it keeps the class means, and of all tasks one covariance: C d numbers for C
    classes in all, however many tasks there are. Images are compared some at a time, so that
    their distances to all classes need not fit in memory.

    Args:
        statistics: the results of `class_statistics`, one per task; read one after the other, so
            that a generator need not hold them all.
        rule: as in `route`.
        shrinkage: likewise.

    Raises:
        ValueError: no statistics, different widths, an unknown rule, or a singular covariance.
    """

    @torch.no_grad()
    def __init__(
        self,
        statistics: Iterable[Mapping[str, Tensor]],
        rule: Rule = "nearest-mean",
        shrinkage: float = 0.1,
    ) -> None:
        if rule not in ("nearest-mean", "gaussian"):
            raise ValueError(f"unknown rule '{rule}': choose nearest-mean or gaussian")
        if not 0 <= shrinkage <= 1:
            raise ValueError(f"shrinkage {shrinkage} is outside 0 to 1")
        means: list[Tensor] = []
        scatter, images = torch.zeros(()), 0
        for one in statistics:
            means.append(one["means"].cpu())
            if means[0].shape[1] != means[-1].shape[1]:
                widths = sorted({means[0].shape[1], means[-1].shape[1]})
                raise ValueError(f"the statistics of tasks have different widths, {widths}")
            if rule == "gaussian":
                scatter = scatter + one["scatter"].cpu().double()
                images += int(one["counts"].sum())
        if not means:
            raise ValueError("no task to route to: pass the statistics of at least one task")
        self.rule, self.tasks = rule, len(means)
        sizes = torch.tensor([len(of_task) for of_task in means])
        self._owners = torch.arange(self.tasks).repeat_interleave(sizes)
        points = torch.cat(means).double()
        self._factor = None
        if rule == "gaussian":
            self._factor = _cholesky(_covariance(scatter, images, len(points), shrinkage))
        self._classes = self._placed(points)

    @torch.no_grad()
    def route(self, features: Tensor) -> Tensor:
        """Return the task of the nearest class: see the function `route`."""
        found = [self._owners[d.argmin(1)] for d in self._distances(features)]
        return torch.cat(found).to(features.device)

    @torch.no_grad()
    def posterior(self, features: Tensor) -> Tensor:
        """Return the probability of every task: see `task_posterior`.

        Raises:
            ValueError: the rule is not "gaussian", which alone has one.
        """
        if self.rule != "gaussian":
            raise ValueError("only the gaussian rule has a posterior")
        parts = []
        for distances in self._distances(features):
            odds = (-0.5 * distances.square()).softmax(1)
            sums = odds.new_zeros(len(odds), self.tasks).index_add_(1, self._owners, odds)
            parts.append(sums.float())
        return torch.cat(parts).to(features.device)

    def _placed(self, points: Tensor) -> Tensor:
        """Return points (N, d), float64, where their plain distances are those of the rule."""
        if self._factor is None:
            return F.normalize(points, dim=-1)
        # |L^-1 (x - m)| is the Mahalanobis distance for S = L L^T
        return torch.linalg.solve_triangular(self._factor, points.T, upper=False).T

    def _distances(self, features: Tensor) -> Iterator[Tensor]:
        """Yield the distances (n, C), float64, of some images at a time to all classes."""
        width = self._classes.shape[1]
        if features.ndim != 2 or features.shape[1] != width:
            raise ValueError(
                f"features {[*features.shape]} do not fit statistics of width [{width}]"
            )
        for rows in features.split(max(1, _DISTANCES // len(self._classes))):
            points = self._placed(rows.cpu().double())
            if self._factor is None:
                yield -(points @ self._classes.T)
            else:
                yield torch.cdist(points, self._classes)


def _covariance(scatter: Tensor, images: int, classes: int, shrinkage: float) -> Tensor:
    """Return the shrunk pooled covariance (d, d), float64, positive definite."""
    freedom, width = images - classes, len(scatter)
    spread = scatter.diagonal().sum() / width
    if freedom < 1 or not spread > 0:
        raise ValueError(
            "the gaussian rule needs a class with two different images: use nearest-mean"
        )
    if shrinkage == 0 and freedom < width:
        raise ValueError(
            f"{images} images are too few for a covariance of {width} dimensions:"
            " set shrinkage above 0"
        )
    return ((1 - shrinkage) * scatter + shrinkage * spread * torch.eye(width).double()) / freedom


def _cholesky(covariance: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        raise ValueError("the covariance of the classes is singular: set a larger shrinkage")
    return factor
