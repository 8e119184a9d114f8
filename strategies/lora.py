"""LoRA: low-rank changes of queries, keys and values of both towers, merged into the weights."""

from collections.abc import Iterable, Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from cl_clipfit import Count, FactoredStrategy, Positive, ScopeOptions, selection

NAME = "lora"
GROUP = "scaling and low rank"
PAPER = "Hu et al. 2022, arXiv 2106.09685 (ICLR), eq. 3; on CLIP: Zanella 2024, arXiv 2405.18541"
NEEDS = "nothing of earlier tasks"
RECIPE = {"lr": 3e-3}  # how it was chosen: docs/results/defaults.md
# That of CLIP-LoRA, whose length is a number of steps (500 per shot), not of epochs.
PUBLISHED = {
    "optimizer": "adamw", "lr": 2e-4, "weight_decay": 1e-2, "batch_size": 32, "schedule": "cosine",
    "rank": 2, "alpha": 1.0,
}  # fmt: skip


class LoraOptions(ScopeOptions):
    """Settings of LoRA."""

    rank: Count = Field(2, description="rank of the change of each matrix")
    alpha: Positive = Field(1.0, description="the change is alpha / rank B A")


class Lora(FactoredStrategy):
    """Cross-entropy; W = W_0 + alpha / rank B A: 184,320 parameters on ViT-B/16 with rank 2.

    B starts at 0 and A uniform in +-1 / sqrt(width), as in the code released with the paper. Each
    task starts new factors on the merged weights. It also stands for what transfers to CLIP of two
    papers on language models: PALT (Shen et al. 2022, arXiv 2210.13715), whose linear layers
    between frozen blocks are such changes, and LoRA for defect prediction. CLIP-LoRA drops out
    inputs of A at a rate of 0.25, which weights that are always merged do not allow.
    """

    extends = True
    options_class = LoraOptions
    options: LoraOptions

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return the joint matrices of queries, keys and values."""
        return selection.select_query_key_value(self.model.clip)

    def new_factors(self, base: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return A (3, rank, width) and B (3, width, rank) of every matrix (3 width, width)."""
        draws = torch.Generator().manual_seed((self.seeds.init + self.tasks_seen) % 2**63)
        factors = {}
        for name, weight in base.items():
            width, rank = weight.shape[1], self.options.rank
            uniform = torch.rand(3, rank, width, generator=draws) * 2 - 1
            factors[f"{name}.A"] = (uniform / width**0.5).to(weight)
            factors[f"{name}.B"] = weight.new_zeros(3, width, rank)
        return factors

    def compose(
        self, base: Mapping[str, Tensor], factors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return W_0 + alpha / rank B A."""
        scale = self.options.alpha / self.options.rank
        return {
            name: weight + scale * (factors[f"{name}.B"] @ factors[f"{name}.A"]).flatten(0, 1)
            for name, weight in base.items()
        }
