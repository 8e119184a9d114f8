"""Gaussians of single classes, and features that are drawn from them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cl_clipfit.heads.statistics import Statistics

# Added to variances. For features of unit length; RAPF adds 1e-4 to those of OpenAI's CLIP as they
# leave the tower, which are about ten times as long.
_RIDGE = 1e-6


def class_gaussian(statistics: Statistics, shrinkage: bool) -> tuple[Tensor, Tensor]:
    """Return mean (D,) and Cholesky factor (D, D) of the features of one class, in fp32.

    Args:
        statistics: of the class alone, at least one feature.
        shrinkage: add the mean variance to the variances, and the mean covariance to the
            covariances, which RAPF does where classes have few images.
    """
    dim, mean = statistics.dim, statistics.sums.sum(0) / statistics.number
    scatter = statistics.gram - statistics.number * mean.outer(mean)
    covariance = scatter / max(statistics.number - 1, 1)
    identity = torch.eye(dim, dtype=torch.float64)
    if shrinkage:
        variance = covariance.trace() / dim
        other = (covariance.sum() - covariance.trace()) / max(dim * (dim - 1), 1)
        covariance = covariance + variance * identity + other * (1 - identity)
    factor = torch.linalg.cholesky(covariance + _RIDGE * identity)
    return mean.float(), factor.float()


def draw(means: Tensor, factors: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Return features (C, number, D) of C Gaussians with means (C, D) and factors (C, D, D).

    Random numbers come from the CPU, so that they are the same for every device.
    """
    noise = torch.randn(len(means), number, means.shape[1], generator=generator)
    return means[:, None] + noise.to(means, non_blocking=True) @ factors.mT


class ClassSums:
    """Sums over the features of each class on its own, and the Gaussians that they give.

    Attributes:
        classes: statistics by label; those of a class have one class.
    """

    def __init__(self) -> None:
        self.classes: dict[int, Statistics] = {}

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add features (N, D) of labels (N,)."""
        for label in labels.unique().tolist():
            rows = features[labels == label]
            added = Statistics.of(rows, torch.zeros(len(rows), dtype=torch.int64))
            before = self.classes.get(label)
            self.classes[label] = before + added if before else added

    def gaussians(self, labels: Sequence[int], shrinkage: bool) -> tuple[Tensor, Tensor]:
        """Return means (C, D) and factors (C, D, D) of some classes; see `class_gaussian`."""
        fitted = [class_gaussian(self.classes[label], shrinkage) for label in labels]
        return torch.stack([mean for mean, _ in fitted]), torch.stack([f for _, f in fitted])

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the sums by label."""
        return {str(label): sums.state_dict() for label, sums in self.classes.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: they are not the sums of classes.
        """
        self.classes = {
            int(label): Statistics.from_state({name: t.cpu() for name, t in sums.items()})
            for label, sums in state.items()
        }
