"""Infer the task of an image from its zero-shot feature, so that no task label is needed."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Rule = Literal["nearest-mean", "gaussian"]


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
    classes, counts = labels.unique(return_counts=True)
    means = torch.empty(len(classes), features.shape[1], dtype=torch.float64)
    scatter = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64)
    for row, label in enumerate(classes):
        group = features[labels == label].double()
        means[row] = group.mean(0)
        centred = group - means[row]
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
    owners, distances = _class_distances(features, statistics, rule, shrinkage)
    return owners[distances.argmin(1)].to(features.device)


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
    owners, distances = _class_distances(features, statistics, "gaussian", shrinkage)
    odds = (-0.5 * distances.square()).softmax(1)
    sums = odds.new_zeros(len(odds), len(statistics)).index_add_(1, owners, odds)
    return sums.to(features.device, torch.float32)


def _class_distances(
    features: Tensor, statistics: Sequence[Mapping[str, Tensor]], rule: Rule, shrinkage: float
) -> tuple[Tensor, Tensor]:
    """Return the task (C,) of every class, and the distance (N, C) of features to it, float64."""
    if not statistics:
        raise ValueError("no task to route to: pass the statistics of at least one task")
    widths = {s["means"].shape[1] for s in statistics}
    if features.ndim != 2 or widths != {features.shape[1]}:
        raise ValueError(
            f"features {[*features.shape]} do not fit statistics of width {sorted(widths)}"
        )
    if rule not in ("nearest-mean", "gaussian"):
        raise ValueError(f"unknown rule '{rule}': choose nearest-mean or gaussian")
    owners = torch.cat([torch.full((len(s["means"]),), t) for t, s in enumerate(statistics)])
    means = torch.cat([s["means"].cpu().double() for s in statistics])
    points = features.cpu().double()
    if rule == "nearest-mean":
        return owners, -(F.normalize(points, dim=-1) @ F.normalize(means, dim=-1).T)
    factor = _cholesky(_shared_covariance(statistics, shrinkage))
    # |L^-1 (x - m)| is the Mahalanobis distance for S = L L^T
    columns = torch.cat([points, means]).T
    whitened = torch.linalg.solve_triangular(factor, columns, upper=False).T
    return owners, torch.cdist(whitened[: len(points)], whitened[len(points) :])


def _shared_covariance(statistics: Sequence[Mapping[str, Tensor]], shrinkage: float) -> Tensor:
    """Return the shrunk pooled covariance (d, d), float64, positive definite."""
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage {shrinkage} is outside 0 to 1")
    scatter = torch.stack([s["scatter"].cpu().double() for s in statistics]).sum(0)
    images = sum(int(s["counts"].sum()) for s in statistics)
    freedom, width = images - sum(len(s["counts"]) for s in statistics), len(scatter)
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
