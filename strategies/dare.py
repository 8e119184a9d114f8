"""DARE: drop most entries of each task's delta at random, rescale the others, and average."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from cl_clipfit import ApartOptions, MergingStrategy, NotNegative, Number
from cl_clipfit.merging import dare, interpolate, task_arithmetic

NAME = "dare"
GROUP = "merging"
PAPER = "Yu et al. 2024, arXiv 2311.03099 (ICML), eq. 2 to 4"
NEEDS = "the mean of the thinned weights of all tasks, and the weights tuned last"


class DareOptions(ApartOptions):
    """Settings of DARE; other settings of its label go to the host."""

    drop: Annotated[float, Number, Field(ge=0, lt=1)] = Field(
        0.9, description="share of each delta that is dropped; the rest is scaled by 1/(1-drop)"
    )
    scale: NotNegative = Field(1.0, description="factor on the mean of the thinned deltas")


class Dare(MergingStrategy):
    """w0 + scale * mean_t (m_t * (w_t - w0)) / (1 - drop), with random masks m_t.

    DARE prepares deltas for any merge; this is its mean over the tasks. A task's mask depends on
    the run's seed and the task's number, so that a delta is thinned once and need not be kept.
    """

    options_class = DareOptions

    def merge_task(self, tuned: dict[str, Tensor]) -> dict[str, Tensor]:
        """Thin the delta, and add it to the mean."""
        base, options = self.zero_shot_point(), self.merge
        seed = (self.seeds.init + self.tasks_seen) % 2**63
        thinned = dare(base, [tuned], drop=options.drop, seed=seed)
        self.total = interpolate(self.total or thinned, thinned, 1 / self.tasks_seen)
        return task_arithmetic(base, [self.total], options.scale)
