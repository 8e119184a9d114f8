"""Linear classifiers in closed form from sufficient statistics: class means, LDA, ridge."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_clipfit.heads.statistics import Statistics


@dataclass(frozen=True)
class LinearHead:
    """Scores x -> weight x + bias.

    Attributes:
        weight: fp64 (K, D).
        bias: fp64 (K,); -inf for a class without features, which is never chosen.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Score features (N, D): fp64 (N, K)."""
        return features.double() @ self.weight.T + self.bias


@dataclass(frozen=True)
class GaussianHead(LinearHead):
    """The discriminant functions of Gaussian classes that share a covariance.

    Attributes:
        factor: the Cholesky factor of the covariance Sigma, fp64 (D, D).
    """

    factor: Tensor

    def distances(self, features: Tensor) -> Tensor:
        """Return the squared Mahalanobis distance (N,) of features (N, D) to the nearest mean."""
        white = torch.linalg.solve_triangular(self.factor, features.double().T, upper=False)
        return white.square().sum(0) - 2 * self(features).amax(1)


def unseen_bias(statistics: Statistics) -> Tensor:
    """Return the bias (K,) that excludes classes without features: -inf for them, else 0."""
    return torch.zeros(len(statistics.counts)).double().masked_fill(~statistics.seen, -torch.inf)


def class_mean_head(statistics: Statistics) -> LinearHead:
    """Return the cosine similarity with class means, for features of unit length.

    SimpleCIL (Zhou et al. 2023, arXiv 2303.07338, eq. 3): prototypes as weights of a cosine
    classifier.
    """
    return LinearHead(F.normalize(statistics.means(), dim=1), unseen_bias(statistics))


def shrunk_covariance(statistics: Statistics, shrinkage: float) -> Tensor:
    """Return Sigma = (1 - s) W / (N - K) + s tr(W) / (D (N - K)) I, fp64 (D, D).

    W is the scatter within the K classes that have features. With one feature of every class it is
    zero, and Sigma is the identity.

    Args:
        statistics: of the features.
        shrinkage: s, from above 0 to 1, towards a multiple of the identity.
    """
    free = statistics.number - int(statistics.seen.sum())
    identity = torch.eye(statistics.dim, dtype=torch.float64)
    if free <= 0:
        return identity
    covariance = statistics.scatter() / free
    variance = covariance.trace() / statistics.dim
    if variance <= 0:  # all features of a class are the same
        return identity
    return (1 - shrinkage) * covariance + shrinkage * variance * identity


def lda_head(statistics: Statistics, shrinkage: float = 0.3) -> GaussianHead:
    """Return linear discriminant analysis with equal priors (Hastie et al. 2009, eq. 4.10).

    Scores are mu_c' Sigma^-1 x - mu_c' Sigma^-1 mu_c / 2, with the covariance of
    `shrunk_covariance`.
    """
    means = statistics.means()
    factor = torch.linalg.cholesky(shrunk_covariance(statistics, shrinkage))
    weight = torch.cholesky_solve(means.T, factor).T
    return GaussianHead(weight, unseen_bias(statistics) - (weight * means).sum(1) / 2, factor)


def gda_head(statistics: Statistics) -> LinearHead:
    """Return the Gaussian head of Wang et al. 2024 (arXiv 2402.04087, eq. 5 and 6).

    LDA with equal priors whose precision is D (W + tr(W) / (N - 1) I)^-1 (Kubokawa and Srivastava
    2008), W being the scatter within classes.
    """
    means, scatter = statistics.means(), statistics.scatter()
    share = scatter.trace() / max(statistics.number - 1, 1)
    identity = torch.eye(statistics.dim, dtype=torch.float64)
    if share <= 0:
        scatter, share = identity, torch.ones(())
    factor = torch.linalg.cholesky(scatter + share * identity)
    weight = statistics.dim * torch.cholesky_solve(means.T, factor).T
    return LinearHead(weight, unseen_bias(statistics) - (weight * means).sum(1) / 2)


def ridge_head(statistics: Statistics, penalty: float) -> LinearHead:
    """Return ridge regression on one-hot targets: (G + penalty I)^-1 S' (RanPAC, eq. 7).

    The same as the recursive updates of ACIL (Zhuang et al. 2022, theorem 1) over all tasks.
    """
    factor = ridge_factor(statistics, penalty)
    weight = torch.cholesky_solve(statistics.sums.T, factor).T
    return LinearHead(weight, unseen_bias(statistics))


def ridge_factor(statistics: Statistics, penalty: float) -> Tensor:
    """Return the Cholesky factor of G + penalty I.

    Raises:
        ValueError: the penalty is not above 0.
    """
    if not penalty > 0:
        raise ValueError(f"the penalty of ridge regression must be above 0, not {penalty}")
    identity = torch.eye(statistics.dim, dtype=torch.float64)
    return torch.linalg.cholesky(statistics.gram + penalty * identity)
