"""Exact scores of each feature by the head that was fitted without it, in closed form."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_clipfit.heads.linear import lda_head, ridge_factor, unseen_bias
from cl_clipfit.heads.statistics import Statistics


def several(counts: Tensor, labels: Tensor) -> Tensor:
    """Return which features (N,) are of a class with others: only they can be left out.

    Args:
        counts: (K,), features of each class, these among them.
        labels: (N,).
    """
    return counts[labels] > 1


def class_mean_scores(statistics: Statistics, features: Tensor, labels: Tensor) -> Tensor:
    """Return the leave-one-out scores (N, K) of `linear.class_mean_head`.

    Args:
        statistics: of all features, these among them.
        features: (N, D), each of a class with at least two.
        labels: (N,).
    """
    x, means = features.double(), statistics.means()
    scores = x @ F.normalize(means, dim=1).T + unseen_bias(statistics)
    without = means[labels] - (x - means[labels]) / (statistics.counts[labels] - 1)[:, None]
    own = (x * F.normalize(without, dim=1)).sum(1)
    return scores.scatter(1, labels[:, None], own[:, None])


def ridge_scores(
    statistics: Statistics, features: Tensor, labels: Tensor, penalty: float
) -> Tensor:
    """Return the leave-one-out scores (N, K) of `linear.ridge_head`.

    With h = x' (G + penalty I)^-1 x, the score of target y becomes (score - h y) / (1 - h): the
    PRESS statistic (Allen 1974).
    """
    x = features.double()
    solved = torch.cholesky_solve(x.T, ridge_factor(statistics, penalty))  # (D, N)
    leverage = (x * solved.T).sum(1, keepdim=True)
    targets = F.one_hot(labels, len(statistics.counts)).double()
    scores = solved.T @ statistics.sums.T
    return (scores - leverage * targets) / (1 - leverage) + unseen_bias(statistics)


def ridge_losses(
    statistics: Statistics, features: Tensor, labels: Tensor, penalties: Sequence[float]
) -> Tensor:
    """Return the sum of squared errors of `ridge_scores` over the classes seen, by penalty.

    One eigendecomposition of G serves all penalties.

    Args:
        statistics: of all features, these among them.
        features: (N, D).
        labels: (N,).
        penalties: P of them, each above 0.

    Returns:
        fp64 (P,).
    """
    seen = statistics.seen
    values, vectors = torch.linalg.eigh(statistics.gram)
    x, sums = features.double() @ vectors, statistics.sums[seen] @ vectors
    targets = F.one_hot(labels, len(seen)).double()[:, seen]
    losses = []
    for penalty in penalties:
        solved = x / (values.clamp(min=0) + penalty)
        leverage = (x * solved).sum(1, keepdim=True)
        # score - h y over 1 - h, minus y, is score - y over 1 - h
        losses.append(((solved @ sums.T - targets) / (1 - leverage)).square().sum())
    return torch.stack(losses)


def lda_scores_and_distances(
    statistics: Statistics, features: Tensor, labels: Tensor, shrinkages: Sequence[float]
) -> list[tuple[Tensor, Tensor]]:
    """Return what `linear.lda_head` gives each feature if it is fitted without it, by shrinkage.

    Without x of class y, with v = x - mu_y: mu_y loses v / (n_y - 1), the scatter W loses
    n_y / (n_y - 1) v v', and N - K falls by 1. The trace of W changes too, so that Sigma changes by
    a multiple of the identity besides the rank-one term; both are followed exactly through the
    eigenvalues of W. One eigendecomposition of W serves all shrinkages.

    Args:
        statistics: of all features, these among them.
        features: (N, D), each of a class with at least two.
        labels: (N,).
        shrinkages: as in `linear.lda_head`.

    Returns:
        scores (N, K), and squared Mahalanobis distances (N,) to the nearest mean.
    """
    x, means = features.double(), statistics.means()
    counts = statistics.counts[labels].double()
    loss = counts / (counts - 1)
    values, vectors = torch.linalg.eigh(statistics.scatter())
    trace = values.sum() - loss * (x - means[labels]).square().sum(1)  # of the scatter without x
    free = statistics.number - int(statistics.seen.sum()) - 1
    if free <= 0 or bool((trace <= 0).any()):
        return [_by_fitting(statistics, x, labels, shrinkage) for shrinkage in shrinkages]
    without = _Without(values, trace, loss, x @ vectors, means @ vectors, labels)
    results = []
    for shrinkage in shrinkages:
        scores, lengths = without.products(shrinkage)
        scores = free * scores + unseen_bias(statistics)
        results.append((scores, free * lengths - 2 * scores.amax(1)))
    return results


class _Without(NamedTuple):
    """Features (N, D) and means (K, D) in the basis where the scatter is diagonal.

    Attributes:
        values: the scatter's eigenvalues (D,).
        trace: of the scatter without each feature (N,).
        loss: n_y / (n_y - 1) of its class (N,).
        x: the features.
        means: of all classes.
        labels: (N,).
    """

    values: Tensor
    trace: Tensor
    loss: Tensor
    x: Tensor
    means: Tensor
    labels: Tensor

    def products(self, shrinkage: float) -> tuple[Tensor, Tensor]:
        """Return scores (N, K) and x' Sigma^-1 x (N,) without each feature, for N - K = 1.

        Sigma is A = (1 - s) diag(values) + s trace / D I, minus a rank-one term. The mean of the
        feature's own class without it is x - loss v.
        """
        x, means, loss = self.x, self.means, self.loss
        ridge = shrinkage * self.trace / len(self.values)
        inverse = 1 / ((1 - shrinkage) * self.values + ridge[:, None])  # A^-1, (N, D)
        v = x - means[self.labels]
        ax, av = inverse * x, inverse * v
        xx, xv, vv = (torch.einsum("nd,nd->n", *pair) for pair in ((ax, x), (ax, v), (av, v)))
        scale = (1 - shrinkage) * loss
        gain = scale / (1 - scale * vv)  # Sherman and Morrison 1950
        mv = av @ means.T
        mx = ax @ means.T + (gain * xv)[:, None] * mv
        mm = inverse @ means.square().T + gain[:, None] * mv.square()
        ox, ov = xx - loss * xv, xv - loss * vv  # of the own mean o
        own = ox + gain * ov * xv - (ox - loss * ov + gain * ov.square()) / 2
        scores = (mx - mm / 2).scatter(1, self.labels[:, None], own[:, None])
        return scores, xx + gain * xv.square()


def _by_fitting(
    statistics: Statistics, x: Tensor, labels: Tensor, shrinkage: float
) -> tuple[Tensor, Tensor]:
    """Return the same where too few features are left for a covariance: few enough to fit."""
    scores, distances = [], []
    for one, label in zip(x, labels, strict=True):
        part = Statistics.of(-one[None], label[None], len(statistics.counts))
        rest = Statistics(
            statistics.gram - part.gram, statistics.sums + part.sums,
            statistics.counts - part.counts,
        )  # fmt: skip
        head = lda_head(rest, shrinkage)
        scores.append(head(one[None]))
        distances.append(head.distances(one[None]))
    return torch.cat(scores), torch.cat(distances)
