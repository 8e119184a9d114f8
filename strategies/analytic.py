"""Analytic learning: recursive ridge regression on random features of frozen image features."""

from pydantic import Field

from cl_clipfit import Positive, RandomFeaturesOptions, RecursiveStrategy
from cl_clipfit.heads.recursive import RecursiveRidge

NAME = "analytic"
GROUP = "closed-form heads"
PAPER = "Zhuang et al. 2022, NeurIPS (ACIL), theorem 1, on CLIP's features"
NEEDS = "the inverse of a second moment of random features, and the weights"


class AnalyticOptions(RandomFeaturesOptions):
    """Settings of analytic learning."""

    penalty: Positive = Field(0.1, description="of ridge regression")


class Analytic(RecursiveStrategy):
    """The ridge regression of all tasks at once, updated with every task; without text."""

    options_class = AnalyticOptions
    options: AnalyticOptions

    def start(self, width: int, classes: int) -> RecursiveRidge:
        """Return the solution for no image."""
        return RecursiveRidge.empty(width, classes, self.options.penalty)
