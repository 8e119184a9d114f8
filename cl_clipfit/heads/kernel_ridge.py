"""Ridge regression in its dual form: coefficients of all features, by their kernel."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


def kernel(first: Tensor, second: Tensor, gamma: float | None) -> Tensor:
    """Return exp(-gamma |x - y|^2) of features (N, D) and (M, D), or x'y without gamma: (N, M)."""
    products = first @ second.T
    if gamma is None:
        return products
    squares = first.square().sum(1)[:, None] + second.square().sum(1) - 2 * products
    return (-gamma * squares.clamp(min=0)).exp()


@dataclass(frozen=True)
class KernelHead:
    """Scores x -> k(x, features) coefficients + bias.

    Attributes:
        features: fp64 (N, D).
        coefficients: fp64 (N, K).
        bias: fp64 (K,); -inf for a class without features, which is never chosen.
        gamma: of the kernel.
    """

    features: Tensor
    coefficients: Tensor
    bias: Tensor
    gamma: float | None

    def __call__(self, features: Tensor) -> Tensor:
        """Score features (M, D): fp64 (M, K)."""
        return kernel(features.double(), self.features, self.gamma) @ self.coefficients + self.bias


@dataclass(frozen=True)
class KernelRidge:
    """Kernel ridge regression on one-hot targets, which keeps every feature.

    RAIL (Xu et al. 2024, arXiv 2406.18868, theorem 2): (K + penalty I)^-1 Y, with the kernel matrix
    K of all features. The theorem adds rows to K; here it is computed again from the features.

    Attributes:
        features: (N, D).
        labels: int64 (N,).
        counts: int64 (K,), features of each class.
        penalty: of ridge regression.
        gamma: of the Gaussian kernel; None for the linear one, which gives `linear.ridge_head`.
    """

    features: Tensor
    labels: Tensor
    counts: Tensor
    penalty: float
    gamma: float | None

    @classmethod
    def empty(cls, dim: int, classes: int, penalty: float, gamma: float | None) -> "KernelRidge":
        """Return the regression on no feature.

        Raises:
            ValueError: the penalty is not above 0.
        """
        if not penalty > 0:
            raise ValueError(f"the penalty of ridge regression must be above 0, not {penalty}")
        integers = torch.zeros(classes, dtype=torch.int64)
        return cls(torch.zeros(0, dim), integers[:0], integers, penalty, gamma)

    def updated(self, features: Tensor, labels: Tensor) -> "KernelRidge":
        """Return the regression with features (N, D) of labels (N,) added."""
        return replace(
            self,
            features=torch.cat([self.features, features]),
            labels=torch.cat([self.labels, labels]),
            counts=self.counts + labels.bincount(minlength=len(self.counts)),
        )

    def grown(self, classes: int) -> "KernelRidge":
        """Return the regression with room for classes that are still to come."""
        more = max(0, classes - len(self.counts))
        return replace(self, counts=torch.cat([self.counts, self.counts.new_zeros(more)]))

    @property
    def head(self) -> KernelHead:
        """The classifier; classes without features are never chosen."""
        x, classes = self.features.double(), len(self.counts)
        ridge = kernel(x, x, self.gamma) + self.penalty * torch.eye(len(x), dtype=x.dtype)
        targets = F.one_hot(self.labels, classes).double()
        solved = torch.cholesky_solve(targets, torch.linalg.cholesky(ridge))
        bias = torch.zeros(classes, dtype=x.dtype).masked_fill(self.counts == 0, -torch.inf)
        return KernelHead(x, solved, bias, self.gamma)
