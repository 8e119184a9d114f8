"""Shared pieces."""

from collections.abc import Iterable, Mapping
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


def one_of_each_kind(classes: Mapping[str, type[CLIPStrategy]]) -> list[str]:
    """Return the method of each kind that adds most to the base that it shares with others.

    For what holds for a method because it holds for its base, and takes seconds to show. Methods
    that say what their own state is are kinds of their own.
    """

    def kind(cls: type[CLIPStrategy]) -> tuple[type, bool]:
        base = next(one for one in cls.__mro__ if ".strategies." not in one.__module__)
        return base, "state_dict" in vars(cls)

    least_first = sorted(classes, key=lambda name: len(vars(classes[name])))
    return sorted({kind(classes[name]): name for name in least_first}.values())
