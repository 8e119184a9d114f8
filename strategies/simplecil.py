"""Cosine similarity with the class means of frozen image features."""

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
