"""LN-Tune: weight and bias of every LayerNorm of one or both towers, or of the first one."""

from collections.abc import Iterable
from typing import Literal

from pydantic import Field
from torch import nn

from cl_clipfit import CLIPStrategy, ScopeOptions, selection

NAME = "ln-tune"
GROUP = "selective fine-tuning"
PAPER = "Basu et al. 2024, arXiv 2304.01917 (AAAI); on both towers of CLIP: 2SFS (CVPR 2025)"
NEEDS = "nothing of earlier tasks"
RECIPE = {"lr": 1e-3}  # how it was chosen: docs/results/defaults.md
# The first stage of 2SFS, whose length is a number of steps (180 per shot), not of epochs.
PUBLISHED = {"optimizer": "adamw", "lr": 2e-4, "weight_decay": 1e-2, "batch_size": 32}


class LnTuneOptions(ScopeOptions):
    """Settings of LN-Tune."""

    norms: Literal["both", "image", "text", "pre"] = Field(
        "both", description="towers whose LayerNorms train; pre: the first of the image tower alone"
    )


class LnTune(CLIPStrategy):
    """Cross-entropy: 65,536 parameters on ViT-B/16, 39,936 of the image tower, 1,536 of `ln_pre`.

    The published methods then fit a classifier on the features; here the text features classify.
    """

    options_class = LnTuneOptions
    options: LnTuneOptions
    extends = True

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return weights and biases of the LayerNorms."""
        clip, norms = self.model.clip, self.options.norms
        chosen = selection.select_text_norms(clip) if norms in ("both", "text") else []
        if norms == "text":
            return chosen
        return chosen + selection.select_layer_norms(clip, "pre" if norms == "pre" else "all")
