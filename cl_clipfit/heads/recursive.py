"""Ridge regression by recursion: the inverse is updated, and no sum is kept."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_clipfit.heads.linear import LinearHead


@dataclass(frozen=True)
class RecursiveRidge:
    """The solution of ridge regression on one-hot targets, updated with every batch of features.

    ACIL (Zhuang et al. 2022, NeurIPS, theorem 1): with R = (G + penalty I)^-1 and features X of
    labels Y, R loses R X' (I + X R X')^-1 X R, and W gains R X' (Y - X W). Equal to
    `linear.ridge_head` on all features at once.

    Attributes:
        inverse: R, fp64 (D, D).
        weight: W', fp64 (K, D).
        counts: int64 (K,), features of each class.
    """

    inverse: Tensor
    weight: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, dim: int, classes: int, penalty: float) -> "RecursiveRidge":
        """Return the solution for no feature.

        Raises:
            ValueError: the penalty is not above 0.
        """
        if not penalty > 0:
            raise ValueError(f"the penalty of ridge regression must be above 0, not {penalty}")
        return cls(
            torch.eye(dim, dtype=torch.float64) / penalty,
            torch.zeros(classes, dim, dtype=torch.float64),
            torch.zeros(classes, dtype=torch.int64),
        )

    def updated(self, features: Tensor, labels: Tensor) -> "RecursiveRidge":
        """Return the solution with features (N, D) of labels (N,) added."""
        x, classes = features.double(), len(self.counts)
        xr = x @ self.inverse
        factor = torch.linalg.cholesky(torch.eye(len(x), dtype=x.dtype) + xr @ x.T)
        inverse = self.inverse - xr.T @ torch.cholesky_solve(xr, factor)
        residual = F.one_hot(labels, classes).double() - x @ self.weight.T
        weight = self.weight + residual.T @ x @ inverse
        counts = self.counts + torch.bincount(labels, minlength=classes)
        return RecursiveRidge((inverse + inverse.T) / 2, weight, counts)

    def grown(self, classes: int) -> "RecursiveRidge":
        """Return the solution with room for classes that are still to come."""
        more = classes - len(self.counts)
        if more <= 0:
            return self
        weight = torch.cat([self.weight, self.weight.new_zeros(more, self.weight.shape[1])])
        return RecursiveRidge(
            self.inverse, weight, torch.cat([self.counts, self.counts.new_zeros(more)])
        )

    @property
    def head(self) -> LinearHead:
        """The classifier; classes without features are never chosen."""
        bias = torch.zeros(len(self.counts), dtype=torch.float64)
        return LinearHead(self.weight, bias.masked_fill(self.counts == 0, -torch.inf))
