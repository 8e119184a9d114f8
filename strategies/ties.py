"""TIES: trim each task's delta, elect a sign for every weight, and average what agrees with it."""

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from cl_clipfit import ApartOptions, MergingStrategy, NotNegative, Number, merging

NAME = "ties"
GROUP = "merging"
PAPER = "Yadav et al. 2023, arXiv 2306.01708 (NeurIPS), algorithm 1"
NEEDS = "the weights of all tasks"


class TiesOptions(ApartOptions):
    """Settings of TIES; other settings of its label go to the host."""

    density: Annotated[float, Number, Field(gt=0, le=1)] = Field(
        0.2, description="share of each delta that is kept, the largest"
    )
    scale: NotNegative = Field(1.0, description="factor on the merged delta")


class Ties(MergingStrategy):
    """w0 + scale * TIES of the deltas of all tasks; defaults as in the paper without a choice.

    The sign of a weight depends on all trimmed deltas together, so that every task's weights are
    kept. Where the trimmed deltas cancel out exactly, the weight stays at zero-shot; the released
    code takes the sign of the majority of all other weights there.
    """

    options_class = TiesOptions

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.all_tuned: list[dict[str, Tensor]] = []

    def merge_task(self, tuned: dict[str, Tensor]) -> dict[str, Tensor]:
        """Merge all tasks again."""
        self.all_tuned = [*self.all_tuned, tuned]
        options = self.merge
        return merging.ties(self.zero_shot_point(), self.all_tuned, options.scale, options.density)
