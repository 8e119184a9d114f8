"""Linear discriminant analysis on frozen image features, from sums over all tasks."""

from typing import Annotated

from annotated_types import Gt, Le
from pydantic import Field

from cl_clipfit import Options, StatisticsStrategy
from cl_clipfit.heads.linear import LinearHead, lda_head
from cl_clipfit.heads.statistics import Statistics

NAME = "lda"
GROUP = "closed-form heads"
PAPER = "Hayes and Kanan 2020, arXiv 1909.01520 (streaming LDA); Hastie et al. 2009, section 4.3"
NEEDS = "sums of features and their products (statistics)"

Shrinkage = Annotated[float, Gt(0), Le(1)]


class LDAOptions(Options):
    """Settings of LDA."""

    shrinkage: Shrinkage = Field(
        0.3, description="share of a multiple of the identity in the covariance"
    )


class LDA(StatisticsStrategy):
    """Gaussian classes of equal priors that share a shrunk covariance, without text."""

    options_class = LDAOptions
    options: LDAOptions
    extends = True

    def solve(self, statistics: Statistics) -> LinearHead:
        """Return the discriminant functions."""
        return lda_head(statistics, self.options.shrinkage)
