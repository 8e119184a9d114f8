"""Canonical correlation analysis of images and class texts, from sums over labelled features."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_clipfit.heads.linear import unseen_bias
from cl_clipfit.heads.statistics import Statistics


@dataclass(frozen=True)
class CanonicalHead:
    """Cosine similarities of images and texts in the subspace where they correlate most.

    Attributes:
        mean: of the images, fp64 (D,).
        directions: of the images, fp64 (D, r), times the canonical correlations.
        text: unit-length projections of the texts, fp64 (K, r), likewise.
        correlations: fp64 (r,), descending.
        bias: fp64 (K,); -inf for a class without features, which is never chosen.
    """

    mean: Tensor
    directions: Tensor
    text: Tensor
    correlations: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Score features (N, D): fp64 (N, K)."""
        projected = F.normalize((features.double() - self.mean) @ self.directions, dim=1)
        return projected @ self.text.T + self.bias


def canonical_head(
    statistics: Statistics, text: Tensor, penalty: float, energy: float = 1.0
) -> CanonicalHead:
    """Return the canonical correlation analysis of all pairs of an image and its class's text.

    Hotelling 1936: the singular values and vectors of Sz^-1/2 Szt St^-1/2. Since the texts of a
    class are the same, counts and class sums hold all sums over pairs, and the cross-covariance is
    a product of a (D, K) and a (K, E) matrix, whose factors are whitened by Cholesky factors.

    Args:
        statistics: of the image features (N, D) of K classes.
        text: (K, E), of every class; rows of classes without features do not matter.
        penalty: added to both diagonals of covariances, above 0.
        energy: share of the sum of squared correlations that the subspace keeps, at least.
    """
    counts, number = statistics.counts.double(), statistics.number
    text, free = text.double(), max(number - 1, 1)
    mean, text_mean = statistics.sums.sum(0) / number, counts @ text / number
    centred = text - text_mean
    image_factor = _factor((statistics.gram - number * mean.outer(mean)) / free, penalty)
    text_factor = _factor((centred.T * counts) @ centred / free, penalty)
    sums = (statistics.sums - counts[:, None] * mean) / free
    image_basis, image_part = torch.linalg.qr(_solve(image_factor, sums.T))
    text_basis, text_part = torch.linalg.qr(_solve(text_factor, centred.T * statistics.seen))
    left, correlations, right = torch.linalg.svd(image_part @ text_part.T)
    squares = correlations.square().cumsum(0)
    kept = int((squares < energy * squares[-1]).sum()) + 1
    weights = correlations[:kept]
    directions = _solve(image_factor.T, image_basis @ left[:, :kept], upper=True) * weights
    of_text = _solve(text_factor.T, text_basis @ right[:kept].T, upper=True) * weights
    shared = F.normalize(centred @ of_text, dim=1)
    return CanonicalHead(mean, directions, shared, weights, unseen_bias(statistics))


def _factor(covariance: Tensor, penalty: float) -> Tensor:
    """Return the Cholesky factor of a covariance with a penalty."""
    return torch.linalg.cholesky(covariance + penalty * torch.eye(len(covariance)).double())


def _solve(factor: Tensor, right: Tensor, upper: bool = False) -> Tensor:
    """Return L^-1 R of a triangular factor."""
    return torch.linalg.solve_triangular(factor, right, upper=upper)
