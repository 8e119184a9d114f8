"""SPU: the last projection, and a part of the first feed-forward layers chosen by gradients."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field
from torch import nn

from cl_clipfit import MaskedStrategy, Number, ScopeOptions, selection

NAME = "spu"
GROUP = "update shaping"
PAPER = "Zhang et al. 2024, arXiv 2308.12462 (CVPR)"
NEEDS = "nothing of earlier tasks"
RECIPE = {"lr": 1e-3}  # how it was chosen: docs/results/defaults.md
PUBLISHED = {  # with a buffer of images, which a replay plug-in of Avalanche can add
    "optimizer": "adamw", "lr": 7.5e-6, "weight_decay": 0.2, "batch_size": 128, "epochs": 10,
    "share": 0.1,
}  # fmt: skip


class SpuOptions(ScopeOptions):
    """Settings of SPU."""

    share: Annotated[float, Number, Field(gt=0, le=1)] = Field(
        0.1, description="share of the entries of each first feed-forward weight that train"
    )


class Spu(MaskedStrategy):
    """Cross-entropy; 4,544,088 entries on ViT-B/16, of each weight those with large gradients.

    They are `visual.proj`, the biases of the first layer of every feed-forward network of both
    towers, and the largest tenth of its weight by |gradient|, chosen anew for every task by a
    quarter of its images. The paper's results need a buffer of old images and the contrastive loss
    of FLYP, both left out here. The released code scores entries by the gradient of the squared
    logits, which ignores the labels; here it is that of the loss.
    """

    extends = True
    options_class = SpuOptions
    options: SpuOptions

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return the parameters that train, wholly or in part."""
        clip = self.model.clip
        layers = selection.select_first_ffn(clip)
        projection = getattr(clip.visual, "proj", None)  # other towers than CLIP's ViT have none
        return [
            *([] if projection is None else [projection]),
            *(p for layer in layers for p in layer.parameters()),
        ]

    def entries(self, name: str, numbers: int) -> int:
        """Return the share of a weight; all of what is not a weight of a feed-forward network."""
        partly = ".mlp." in name and name.endswith(".weight")
        return max(1, int(self.options.share * numbers)) if partly else numbers
