"""Exact scores of each feature by the head that was fitted without it, in closed form."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_clipfit.heads.linear import lda_head, ridge_factor, unseen_bias
from cl_clipfit.heads.statistics import Statistics


def several(statistics: Statistics, labels: Tensor) -> Tensor:
    """Return which features (N,) are of a class with others: only they can be left out."""
    return statistics.counts[labels] > 1


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


Eigen = tuple[Tensor, Tensor]  # values (D,) and vectors (D, D), by column


def scatter_eigen(statistics: Statistics) -> Eigen:
    """Return the eigenvalues and eigenvectors of the scatter within classes, for `lda_scores`."""
    values, vectors = torch.linalg.eigh(statistics.scatter())
    return values, vectors


def lda_scores(
    statistics: Statistics,
    features: Tensor,
    labels: Tensor,
    shrinkage: float = 0.3,
    eigen: Eigen | None = None,
) -> Tensor:
    """Return the leave-one-out scores (N, K) alone of `lda_scores_and_distances`."""
    return lda_scores_and_distances(statistics, features, labels, shrinkage, eigen)[0]


def lda_scores_and_distances(
    statistics: Statistics,
    features: Tensor,
    labels: Tensor,
    shrinkage: float = 0.3,
    eigen: Eigen | None = None,
) -> tuple[Tensor, Tensor]:
    """Return what `linear.lda_head` gives each feature if it is fitted without it.

    Without x of class y, with v = x - mu_y: mu_y loses v / (n_y - 1), the scatter W loses
    n_y / (n_y - 1) v v', and N - K falls by 1. The trace of W changes too, so that Sigma changes by
    a multiple of the identity besides the rank-one term; both are followed exactly through the
    eigenvalues of W.

    Args:
        statistics: of all features, these among them.
        features: (N, D), each of a class with at least two.
        labels: (N,).
        shrinkage: as in `linear.lda_head`.
        eigen: the result of `scatter_eigen`, to share it between several shrinkages.

    Returns:
        scores (N, K), and squared Mahalanobis distances (N,) to the nearest mean.
    """
    x, means = features.double(), statistics.means()
    free = statistics.number - int(statistics.seen.sum()) - 1
    values, vectors = eigen or scatter_eigen(statistics)
    counts = statistics.counts[labels].double()
    v = x - means[labels]
    loss = counts / (counts - 1)
    trace = values.sum() - loss * (v * v).sum(1)  # (N,), of the scatter without x
    if free <= 0 or bool((trace <= 0).any()):
        return _by_fitting(statistics, x, labels, shrinkage)
    ridge = shrinkage * trace / statistics.dim  # times 1 / free, as everything below
    # In the basis of eigenvectors: A = (1 - s) diag(values) + ridge I, minus a rank-one term.
    inverse = 1 / ((1 - shrinkage) * values + ridge[:, None])  # (N, D)
    xe, ve, me = x @ vectors, v @ vectors, means @ vectors
    scale = (1 - shrinkage) * loss
    av = inverse * ve
    gain = scale / (1 - scale * (ve * av).sum(1))  # Sherman and Morrison 1950

    def products(left: Tensor, right: Tensor) -> Tensor:
        """Return left' Sigma^-1 right for rows of (N, D)."""
        plain = (left * inverse * right).sum(1)
        return free * (plain + gain * (left * av).sum(1) * (right * av).sum(1))

    mx = (xe * inverse) @ me.T + gain[:, None] * (xe * av).sum(1, keepdim=True) * (av @ me.T)
    mm = inverse @ (me * me).T + gain[:, None] * (av @ me.T) ** 2
    scores = free * (mx - mm / 2) + unseen_bias(statistics)
    without = me[labels] - ve / (counts - 1)[:, None]
    own = products(without, xe) - products(without, without) / 2
    scores = scores.scatter(1, labels[:, None], own[:, None])
    return scores, products(xe, xe) - 2 * scores.amax(1)


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
