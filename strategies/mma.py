"""MMA: bottlenecks beside the upper blocks of both towers, which share a projection."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from cl_clipfit import BlockAdapter, BlockAdapterStrategy, Count, Positive, ScopeOptions

NAME = "mma"
GROUP = "adapters"
PAPER = "Yang et al. 2024, Multi-Modal Adapter (CVPR), and its code, ZjjConan/Multi-Modal-Adapter"
NEEDS = "nothing of earlier tasks"
RECIPE = {"lr": 9e-3}
PUBLISHED = {  # few-shot, base to novel; on ImageNet with batches of 128
    "optimizer": "sgd", "lr": 1.5e-3, "weight_decay": 5e-4, "batch_size": 16, "epochs": 5,
    "schedule": "epoch-cosine", "augmentation": "crop-flip", "scale": 1e-3,
}  # fmt: skip


class MmaOptions(ScopeOptions):
    """Settings of MMA."""

    blocks: Count | None = Field(
        None, description="last blocks of each tower with adapters; default two thirds"
    )
    width: Count = Field(32, description="width of the bottlenecks, and of what the towers share")
    scale: Positive = Field(0.1, description="weight of the adapters' output; published 0.001")


class ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        """Return x."""
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Scale the gradient of x."""
        return gradients[0] * ctx.factor, None


class Bottleneck(BlockAdapter):
    """scale W_up relu(W_shared relu(W_down LN_1(x))), with biases, of the input x of a block.

    The gradient of the weights is that without the scale; the gradient of x is exact.
    """

    def __init__(self, width: int, shared: nn.Linear, scale: float) -> None:
        super().__init__()
        self.down, self.shared = nn.Linear(width, shared.in_features), shared
        self.up, self.scale = nn.Linear(shared.out_features, width), scale
        for linear in (self.down, self.shared):
            nn.init.kaiming_normal_(linear.weight, mode="fan_out", nonlinearity="relu")
        for parameter in (self.down.bias, self.shared.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, block: Any, rows: Tensor, attended: Tensor, samples: int) -> Tensor:
        """Return the output for every row."""
        normed = block.ln_1(ScaleGradient.apply(rows, self.scale))
        inner = self.shared(self.down(normed).relu()).relu()
        output: Tensor = ScaleGradient.apply(self.up(inner) * self.scale, 1 / self.scale)
        return output


class Mma(BlockAdapterStrategy):
    """Cross-entropy; adapters of the last 8 of 12 blocks: 674,560 parameters on ViT-B/16.

    Of both towers, the blocks that are equally far from the top share W_shared, through which each
    tower gets gradients of the other. W_up starts at 0, which is zero-shot CLIP; in the released
    code it starts random, as W_down does, which at a scale of 0.001 is a small change. A scale of
    0.001 suits the published SGD, whose steps grow with the gradient; AdamW's do not, and would
    not get far within the epochs of a task. The released evaluation keeps the text features of
    its first epoch; here they follow the weights.
    """

    options_class = MmaOptions
    options: MmaOptions

    def new_adapters(
        self, image: list[int], words: list[int]
    ) -> tuple[list[Bottleneck], list[Bottleneck]]:
        """Return one adapter for each of the last blocks."""
        options, most = self.options, min(len(image), len(words))
        count = min(options.blocks or max(1, 2 * most // 3), most)
        shared = [nn.Linear(options.width, options.width) for _ in range(count)]
        of_image, of_words = (
            [Bottleneck(w, s, options.scale) for w, s in zip(widths[-count:], shared, strict=True)]
            for widths in (image, words)
        )
        return of_image, of_words
