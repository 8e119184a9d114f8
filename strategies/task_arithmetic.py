"""Task arithmetic: zero-shot CLIP plus the scaled sum of the deltas of all tasks."""

from pydantic import Field
from torch import Tensor

from cl_clipfit import ApartOptions, MergingStrategy, NotNegative
from cl_clipfit.merging import task_arithmetic

NAME = "task-arithmetic"
GROUP = "merging"
PAPER = "Ilharco et al. 2023, arXiv 2212.04089 (ICLR), section 4"
NEEDS = "the sum of the deltas of all tasks, and the weights tuned last"


class TaskArithmeticOptions(ApartOptions):
    """Settings of task arithmetic; other settings of its label go to the host."""

    scale: NotNegative = Field(0.3, description="factor on the sum of deltas")


class TaskArithmetic(MergingStrategy):
    """w0 + scale * sum_t (w_t - w0).

    The paper tunes every task from zero-shot CLIP, which is the default here. Tuned one from the
    other, later deltas hold the earlier ones, and the sum counts these several times. The paper
    chooses the scale on held-out data of all tasks, 0.3 to 0.5 for eight; here it is constant.
    """

    options_class = TaskArithmeticOptions

    def merge_task(self, tuned: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the delta to the sum."""
        base = self.zero_shot_point()
        self.total = task_arithmetic(base, [self.total or base, tuned])  # base + sum of deltas
        return task_arithmetic(base, [self.total], self.merge.scale)
