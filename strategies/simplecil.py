"""Cosine similarity with the class means of frozen image features."""

from collections.abc import Mapping

import torch
from torch import Tensor

from cl_clipfit import StatisticsStrategy
from cl_clipfit.heads.linear import LinearHead, class_mean_head
from cl_clipfit.heads.statistics import Statistics

NAME = "simplecil"
GROUP = "closed-form heads"
PAPER = "Zhou et al. 2023, arXiv 2303.07338 (IJCV 2024), eq. 3"
NEEDS = "class sums (statistics)"


class SimpleCIL(StatisticsStrategy):
    """Class means as the weights of a cosine classifier, without text."""

    extends = True

    def solve(self, statistics: Statistics) -> LinearHead:
        """Return the cosine similarity with the class means."""
        return class_mean_head(statistics)

    def head_state(self) -> dict[str, Tensor]:
        """Return the class sums and counts: the products of features have no part in means."""
        return {name: t for name, t in super().head_state().items() if name != "gram"}

    def head_bytes(self, images: int, classes: int) -> int:
        """Return the size of the class sums and counts."""
        return super().head_bytes(images, classes) - Statistics.size(self.head_width, 0)

    def load_head_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore them and the head."""
        if state:
            dim = self.head_width
            state = {**state, "gram": torch.zeros(dim, dim, dtype=torch.float64)}
        super().load_head_state(state)
