"""What a task changed: arithmetic on named tensors."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_BLOCK = re.compile(r"^(.*?(?:resblocks|blocks)\.\d+)\.")
_TENSOR = ("weight", "bias")


def layer_of(name: str) -> str:
    """Return the layer a parameter belongs to: its block, else its module.

    Example:
        >>> layer_of("clip.visual.transformer.resblocks.3.ln_1.weight")
        'clip.visual.transformer.resblocks.3'
        >>> layer_of("clip.visual.ln_pre.bias"), layer_of("clip.visual.proj")
        ('clip.visual.ln_pre', 'clip.visual.proj')
    """
    block = _BLOCK.match(name)
    if block:
        return block[1]
    module, _, last = name.rpartition(".")
    return module if last in _TENSOR else name


def change_by_layer(
    values: Mapping[str, Tensor], anchors: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return the root mean square change of every layer's tuned values, in the model's order.

    Args:
        values: tuned parameters by name.
        anchors: where they started, with at least the same names.

    Example:
        >>> start = {"a.weight": torch.zeros(2), "a.bias": torch.zeros(2)}
        >>> change_by_layer({"a.weight": torch.full((2,), 2.0), "a.bias": torch.zeros(2)}, start)
        {'a': 1.4142135381698608}
    """
    squares: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for name, value in values.items():
        layer = layer_of(name)
        change = (value.detach() - anchors[name].to(value)).float().square().sum()
        squares[layer] = squares.get(layer, torch.zeros_like(change)) + change
        counts[layer] = counts.get(layer, 0) + value.numel()
    return {layer: float((total / counts[layer]).sqrt()) for layer, total in squares.items()}
