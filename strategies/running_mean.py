"""Running mean: the plain average of what a method tuned in each task."""

from torch import Tensor

from cl_clipfit import MergingStrategy
from cl_clipfit.merging import interpolate

NAME = "running-mean"
GROUP = "merging"
PAPER = "uniform soup: Wortsman et al. 2022, arXiv 2203.05482; over tasks: arXiv 2312.08977"
NEEDS = "the mean of the weights of all tasks, and the weights tuned last"


class RunningMean(MergingStrategy):
    """m_t = m_(t-1) + (w_t - m_(t-1)) / t.

    By default each task is tuned from the weights tuned last, so that the average never slows the
    host down (Polyak averaging). With start=merged it is tuned from the average, as CoMA (Marouf
    et al. 2024, arXiv 2312.08977) does, whose share of the new task is constant instead of 1 / t.
    """

    def merge_task(self, tuned: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean over the tasks."""
        mean = self.total or tuned
        self.total = interpolate(mean, tuned, 1 / self.tasks_seen)
        return self.total
