"""BitFit: every bias of one or both towers, those of LayerNorms included."""

from collections.abc import Iterable
from typing import Literal

from pydantic import Field
from torch import nn

from cl_clipfit import CLIPStrategy, ScopeOptions, selection

NAME = "bitfit"
GROUP = "selective fine-tuning"
PAPER = "Ben Zaken et al. 2022, arXiv 2106.10199 (ACL), section 3"
NEEDS = "nothing of earlier tasks"
RECIPE = {"lr": 3e-4}  # how it was chosen: docs/results/defaults.md
PUBLISHED = {"optimizer": "adamw", "lr": 1e-3}  # of fine-tuning BERT; epochs differ by task


class BitFitOptions(ScopeOptions):
    """Settings of BitFit."""

    biases: Literal["both", "image", "text"] = Field(
        "both", description="towers whose biases train"
    )


class BitFit(CLIPStrategy):
    """Cross-entropy; theta_b <- theta_b - lr g, all else frozen: 171,008 parameters on ViT-B/16.

    The published method also trains a new task head. Here the text features are the head, and the
    biases of the text tower move it. The biases of attention are `in_proj_bias`, which a search for
    ".bias" would miss.
    """

    options_class = BitFitOptions
    options: BitFitOptions
    extends = True

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return the biases."""
        clip, towers = self.model.clip, self.options.biases
        text = selection.select_text_biases(clip, "none" if towers == "image" else "all")
        return text if towers == "text" else [*text, *selection.select_image_biases(clip)]
