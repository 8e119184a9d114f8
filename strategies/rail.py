"""RAIL: recursive ridge regression behind a gate that leaves zero-shot as it is for other names."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from cl_clipfit import Positive, RandomFeaturesOptions, RecursiveStrategy, Share
from cl_clipfit.heads.fusion import reranked
from cl_clipfit.heads.kernel_ridge import KernelRidge
from cl_clipfit.heads.recursive import RecursiveRidge

NAME = "rail"
GROUP = "closed-form heads"
PAPER = "Xu et al. 2024, arXiv 2406.18868 (NeurIPS), theorems 1 and 2"
NEEDS = "the inverse of a second moment of random features; form=dual: features of all images"
EXEMPLARS = "exemplars"
PUBLISHED = {"width": 15_000, "penalty": 0.3}


class RAILOptions(RandomFeaturesOptions):
    """Settings of RAIL, with the values of the released code; `width` is 15,000 there."""

    form: Literal["primal", "dual"] = Field(
        "primal", description="ridge regression on random features, or by a Gaussian kernel"
    )
    penalty: Positive = Field(0.3, description="of the primal form")
    dual_penalty: Positive = Field(0.001, description="of the dual form")
    gamma: Positive = Field(0.1, description="of the kernel exp(-gamma |x - y|^2)")
    fusion_weight: Share = Field(0.9, description="of the regression beside zero-shot CLIP")

    @property
    def exemplars(self) -> str:
        """Return what it uses of the images of old tasks."""
        return "features" if self.form == "dual" else "no"


class RAIL(RecursiveStrategy):
    """Zero-shot CLIP decides whether an image is of a class seen; if so, both decide which one.

    Among the classes seen, the scores are fusion_weight times the regression plus the rest times
    the zero-shot probabilities; the best of them is as high as zero-shot puts the best class seen.
    Every other name, of the stream or of a probe, keeps its zero-shot score. So an image whose best
    name is not of a class seen is answered as by zero-shot CLIP, whichever names compete.

    Differences from the released code, which was read beside a summary of the paper: its
    probabilities are over all names of the label space, here over the classes seen, so that the
    answer among these does not depend on names of the future. Its random layer has uniform weights
    of a third of the variance, without a seed of its own; `PUBLISHED` has three times its penalty
    of 0.1, which is the same regression. Its dual form solves anew with all features after each
    task, which gives what theorem 2 gives; so does this one.
    """

    compares_text = True
    options_class = RAILOptions
    options: RAILOptions

    def start(self, width: int, classes: int) -> RecursiveRidge | KernelRidge:
        """Return the solution for no image."""
        options = self.options
        if options.form == "primal":
            return RecursiveRidge.empty(width, classes, options.penalty)
        return KernelRidge.empty(width, classes, options.dual_penalty, options.gamma)

    def embed(self, rows: Tensor) -> Tensor:
        """Map rows (N, d) to random features; in the dual form they stay as they are."""
        return super().embed(rows) if self.options.form == "primal" else rows

    def head_bytes(self, images: int, classes: int) -> int:
        """Return the size of the solution; in the dual form, that of all features and labels."""
        if self.options.form == "primal":
            return super().head_bytes(images, classes)
        return images * (4 * self.model.zero_shot_text_features.shape[1] + 8)

    def scores(self, images: Tensor) -> Tensor:
        """Score images (B, ...): (B, K)."""
        features = self.model.image_features(images)
        text = self.model.logits(features, self.model.text_features())
        if self.solution is None or self.head is None:
            return text
        seen, share = (self.solution.counts > 0).to(text.device), self.options.fusion_weight
        ridge = self.head_scores(features)[:, seen]
        both = (1 - share) * text[:, seen].softmax(1) + share * ridge
        return reranked(text, self.model.logit_scale * both, seen)
