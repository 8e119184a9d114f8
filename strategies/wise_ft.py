"""WiSE-FT: the weights between zero-shot CLIP and those that a method tuned last."""

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from cl_clipfit import MergingOptions, MergingStrategy, Share
from cl_clipfit.merging import interpolate

NAME = "wise-ft"
GROUP = "merging"
PAPER = "Wortsman et al. 2022, arXiv 2109.01903 (CVPR), eq. 1"
NEEDS = "the weights tuned last"
# No PUBLISHED: the recipes of the paper are those of its hosts; alpha is its own.


class WiseFTOptions(MergingOptions):
    """Settings of WiSE-FT; other settings of its label go to the host."""

    alpha: Share = Field(0.5, description="share of the tuned weights; zero-shot has the rest")
    sweep: tuple[Share, ...] = Field((), description="further shares to score, as [0.2, 0.8]")


class WiseFT(MergingStrategy):
    """(1 - alpha) zero-shot + alpha tuned, after every task.

    The paper interpolates one finished model, and recommends alpha = 0.5 where nothing is known of
    the shift to come. On a stream the host is therefore trained as it is alone, each task from the
    weights tuned last, and the interpolation only classifies. With start=merged, what a task
    learned shrinks by alpha with each later one.
    """

    options_class = WiseFTOptions

    def merge_task(self, tuned: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the interpolation at alpha."""
        return interpolate(self.zero_shot_point(), tuned, self.merge.alpha)

    def compared(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the host, which is alpha 1, and the interpolations of the sweep."""
        start, tuned = self.zero_shot_point() if self.tuned else {}, self.tuned or {}
        shares = self.merge.sweep if tuned else ()
        swept = {f"alpha {share:g}": interpolate(start, tuned, share) for share in shares}
        return {**super().compared(), **swept}
