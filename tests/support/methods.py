"""Shared pieces."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from cl_clipfit import CLIPStrategy


class TwoGroups(CLIPStrategy):
    """Text biases and image LayerNorms, each with its own learning rate."""

    def trainable(self) -> Iterable[nn.Parameter]:
        clip = self.model.clip
        norms = [m for m in clip.visual.modules() if isinstance(m, nn.LayerNorm)]
        biases = [block.mlp.c_proj.bias for block in clip.transformer.resblocks]
        return [*(p for m in norms for p in m.parameters()), *biases]

    def parameter_groups(self) -> list[dict[str, Any]]:
        text = [p for n, p in self.selection.items() if ".visual." not in n]
        image = [p for n, p in self.selection.items() if ".visual." in n]
        return [{"params": text, "lr": 0.05}, {"params": image}]
