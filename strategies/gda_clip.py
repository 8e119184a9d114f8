"""A Gaussian head on frozen image features, added to the zero-shot scores."""

from pydantic import Field
from torch import Tensor

from cl_clipfit import NotNegative, Options, StatisticsStrategy
from cl_clipfit.heads.fusion import fused
from cl_clipfit.heads.linear import LinearHead, gda_head
from cl_clipfit.heads.statistics import Statistics

NAME = "gda-clip"
GROUP = "closed-form heads"
PAPER = "Wang et al. 2024, arXiv 2402.04087 (ICLR), eq. 5 to 8"
NEEDS = "sums of features and their products (statistics)"


class GDAOptions(Options):
    """Settings of GDA."""

    weight: NotNegative = Field(
        1.0, description="of the Gaussian scores; the paper chooses it on a validation set"
    )


class GDAClip(StatisticsStrategy):
    """Zero-shot logits plus weight * Gaussian scores; classes not seen yet are never chosen."""

    compares_text = True
    options_class = GDAOptions
    options: GDAOptions
    extends = True

    def solve(self, statistics: Statistics) -> LinearHead:
        """Return the Gaussian head."""
        return gda_head(statistics)

    def scores(self, images: Tensor) -> Tensor:
        """Score images (B, ...): (B, K)."""
        features = self.model.image_features(images)
        text = self.model.logits(features, self.model.text_features())
        if self.head is None:
            return text
        return fused(text, self.head_scores(features), (1.0, self.options.weight))
