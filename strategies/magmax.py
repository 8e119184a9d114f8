"""MagMax: zero-shot CLIP plus, for every weight, the largest change of all tasks."""

from pydantic import Field
from torch import Tensor

from cl_clipfit import MergingOptions, MergingStrategy, NotNegative, merging

NAME = "magmax"
GROUP = "merging"
PAPER = "Marczak et al. 2024, arXiv 2407.06322 (ECCV), algorithm 1"
NEEDS = "the largest delta of every weight, and the weights tuned last"


class MagMaxOptions(MergingOptions):
    """Settings of MagMax; other settings of its label go to the host."""

    scale: NotNegative = Field(1.0, description="factor on the merged delta")


class MagMax(MergingStrategy):
    """w0 + scale * (w_t - w0 of the task t where it is largest, entry by entry).

    As in the paper, each task is tuned from the weights tuned last, and all deltas are relative to
    zero-shot CLIP. The paper chooses the scale on held-out data; here it is constant.
    """

    options_class = MagMaxOptions

    def merge_task(self, tuned: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take the new delta where it is the largest so far."""
        base = self.zero_shot_point()
        self.total = merging.magmax(base, [self.total or base, tuned])
        return merging.magmax(base, [self.total], self.merge.scale)
