"""CLIP-Adapter: a bottleneck on image features, mixed with the features themselves."""

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cl_clipfit import AdapterStrategy, ScopeOptions, Share

NAME = "clip-adapter"
GROUP = "adapters"
PAPER = "Gao et al. 2021, arXiv 2110.04544 (IJCV 2024), eq. 5 to 7"
NEEDS = "nothing of earlier tasks"
RECIPE = {"lr": 9e-3}  # how it was chosen: docs/results/defaults.md
# No PUBLISHED: the recipes of the paper and of its code differ.


class ClipAdapterOptions(ScopeOptions):
    """Settings of CLIP-Adapter."""

    ratio: Share = Field(0.2, description="share of the bottleneck; the feature has the rest")


class ClipAdapter(AdapterStrategy):
    """ratio * relu(relu(f W1) W2) + (1 - ratio) f, to unit length; W1 (d/4, d), W2 (d, d/4).

    131,072 parameters on ViT-B/16, without biases. The released code sets d to 1024, that of its
    ResNet, and mixes features as the tower puts them out; here they have unit length before, so
    that the ratio means the same for every tower. Only the adapter of the image side is trained, as
    in the released code.
    """

    extends = True
    options_class = ClipAdapterOptions
    options: ClipAdapterOptions

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        width = self.model.zero_shot_text_features.shape[1]
        draws = torch.Generator().manual_seed(self.seeds.init)
        for name, shape in (("down", (width // 4, width)), ("up", (width, width // 4))):
            bound = shape[1] ** -0.5  # as PyTorch starts a linear layer
            start = torch.empty(shape).uniform_(-bound, bound, generator=draws).to(self.device)
            self.model.register_parameter(
                f"clip_adapter_{name}", nn.Parameter(start, requires_grad=False)
            )

    @property
    def weights(self) -> tuple[nn.Parameter, nn.Parameter]:
        """Return W1 and W2, which belong to the model."""
        down, up = self.model.clip_adapter_down, self.model.clip_adapter_up
        return cast(nn.Parameter, down), cast(nn.Parameter, up)

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return both matrices."""
        return self.weights

    def adapt(self, features: Tensor) -> Tensor:
        """Mix features with the output of the bottleneck."""
        down, up = self.weights
        inner, ratio = F.relu(F.relu(features @ down.T) @ up.T), self.options.ratio
        return F.normalize(ratio * inner + (1 - ratio) * features, dim=-1)

    def zero_shot_point(self) -> dict[str, Tensor]:
        """Return W1 as it starts, and W2 = 0, where the bottleneck puts out nothing."""
        values = {name: self.model.pretrained_values[name] for name in self.selection}
        return {n: torch.zeros_like(v) if n.endswith("up") else v for n, v in values.items()}
