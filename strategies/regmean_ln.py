"""RegMean of LayerNorms: weights and biases that reproduce the outputs of every task's own."""

from typing import Any

from pydantic import Field
from torch import Tensor

from cl_clipfit import Count, MergingOptions, MergingStrategy, Share, norm_moments
from cl_clipfit.merging import Moments, pooled_moments, regmean

NAME = "regmean-ln"
GROUP = "merging"
PAPER = "Jin et al. 2023, arXiv 2212.09849 (ICLR), eq. 2, for LayerNorms (this project)"
NEEDS = "the merged weights, two moments per LayerNorm channel (statistics), the weights tuned last"


class RegMeanOptions(MergingOptions):
    """Settings of RegMean; other settings of its label go to the host."""

    samples: Count = Field(256, description="images of a task that its moments are taken from")
    off_diagonal: Share = Field(
        0.9, description="factor on the mean beside the weight: 1 is the exact least-squares fit"
    )


class RegMeanLN(MergingStrategy):
    """The least-squares fit of each LayerNorm channel to what every task's own one puts out.

    A channel is gamma * x + beta of a normalised input x, so that its fit is a 2 x 2 system in
    E x and E x^2, which are added up over the tasks: the last merged weights and the pooled moments
    stand for all of them. Text biases and all other parameters get the mean weighted by images.
    The paper shrinks what is off the diagonal by 0.9; it merges models that were tuned apart from
    each other (start=zero-shot). Here each task is tuned from the weights tuned last.
    """

    options_class = RegMeanOptions
    repeats_images = True
    sample = "samples"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.moments: Moments | None = None

    def merge_task(self, tuned: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take the moments of the task, and fit."""
        images, _ = self.task_sample(self.merge.samples)
        new = norm_moments(self, images, len(self.experience.dataset))
        if self.total is None or self.moments is None:
            self.total, self.moments = tuned, new
        else:
            both = [self.moments, new]
            self.total = regmean([self.total, tuned], both, self.merge.off_diagonal)
            self.moments = pooled_moments(*both)
        return self.total

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with the moments as plain values."""
        moments = vars(self.moments) if self.moments else None
        return {**super().state_dict(), "moments": moments}

    def load_state_dict(self, state: Any) -> None:
        """Restore it."""
        super().load_state_dict(state)
        self.moments = Moments(**state["moments"]) if state["moments"] else None
