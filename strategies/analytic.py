"""Analytic learning: recursive ridge regression on random features of frozen image features."""

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from cl_clipfit import Positive, RandomFeaturesOptions, RandomFeaturesStrategy
from cl_clipfit.heads.linear import LinearHead
from cl_clipfit.heads.recursive import RecursiveRidge

NAME = "analytic"
GROUP = "closed-form heads"
PAPER = "Zhuang et al. 2022, NeurIPS (ACIL), theorem 1, on CLIP's features"
NEEDS = "the inverse of a second moment of random features, and the weights"


class AnalyticOptions(RandomFeaturesOptions):
    """Settings of analytic learning."""

    penalty: Positive = Field(0.1, description="of ridge regression")


class Analytic(RandomFeaturesStrategy):
    """The ridge regression of all tasks at once, updated with every task; without text."""

    options_class = AnalyticOptions
    options: AnalyticOptions
    solution: RecursiveRidge | None = None

    def add(self, features: Tensor, labels: Tensor, classes: int) -> None:
        """Update the solution."""
        if self.solution is None:
            width, penalty = features.shape[1], self.options.penalty
            self.solution = RecursiveRidge.empty(width, classes, penalty)
        self.solution = self.solution.updated(features, labels)

    def fit(self) -> LinearHead:
        """Return the classifier of the solution."""
        assert self.solution is not None
        return self.solution.head

    def head_state(self) -> dict[str, Tensor]:
        """Return the solution."""
        return {} if self.solution is None else dict(vars(self.solution))

    def load_head_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the solution and the head."""
        if state:
            self.solution = RecursiveRidge(**{name: t.cpu() for name, t in state.items()})
            self.head = self.fit()
