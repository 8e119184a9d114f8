"""Changes of a task by layer: arithmetic on named tensors."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_BLOCK = re.compile(r"^(.*?(?:resblocks|blocks)\.\d+)\.")
_TENSOR = ("weight", "bias")


def layer_of(name: str) -> str:
    """Return the layer that a parameter belongs to: its block, or else its module.

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


def squared_change_by_layer(
    values: Mapping[str, Tensor], anchors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the summed squared change of every layer, with gradients, in the model's order.

    Args:
        values: tuned parameters by name, of any shape.
        anchors: initial values, with at least the same names.

    Returns:
        one scalar per layer.
    """
    squares: dict[str, Tensor] = {}
    for name, value in values.items():
        change = (value - anchors[name].to(value)).float().square().sum()
        layer = layer_of(name)
        squares[layer] = squares[layer] + change if layer in squares else change
    return squares


@torch.no_grad()
def change_by_layer(
    values: Mapping[str, Tensor], anchors: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return the root mean square change of every layer's tuned values, in the model's order.

    Example:
        >>> start = {"a.weight": torch.zeros(2), "a.bias": torch.zeros(2)}
        >>> change_by_layer({"a.weight": torch.full((2,), 2.0), "a.bias": torch.zeros(2)}, start)
        {'a': 1.4142135381698608}
    """
    counts: dict[str, int] = {}
    for name, value in values.items():
        counts[layer_of(name)] = counts.get(layer_of(name), 0) + value.numel()
    squares = squared_change_by_layer(values, anchors)
    return {layer: float((total / counts[layer]).sqrt()) for layer, total in squares.items()}


def tensor_groups(values: Mapping[str, Tensor]) -> dict[str, str]:
    """Group tensors by tower, last component of their name, and number of dimensions.

    The tensors of a group are of one kind and scale. CLIPFit's groups are the text biases, the
    weights of the image LayerNorms, and their biases.

    Returns:
        the group of every name.

    Example:
        >>> tensor_groups({"clip.visual.ln_pre.weight": torch.ones(4), "context": torch.ones(2, 4)})
        {'clip.visual.ln_pre.weight': 'image weight 1d', 'context': 'context 2d'}
    """
    groups = {}
    for name, value in values.items():
        tower = "" if not name.startswith("clip.") else "image " if ".visual." in name else "text "
        groups[name] = f"{tower}{name.rpartition('.')[2]} {value.dim()}d"
    return groups
