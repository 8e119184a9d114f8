"""open_clip's own forward with functions beside its blocks, as a reference for adapters."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_clipfit import CLIPClassifier

Beside = Callable[[Any, Tensor, Tensor], Tensor]


def features(
    model: CLIPClassifier, images: Tensor, tokens: Tensor, beside: dict[str, Beside]
) -> tuple[Tensor, Tensor]:
    """Encode images and token ids at full length, as open_clip does, with hooks on its blocks.

    Args:
        model: runs without adapters.
        images: (B, ...) of any size.
        tokens: (P, L).
        beside: by the name of a block, what is added to its output: a function of the block, of its
            input and of the input of its second LayerNorm, each (samples, N, width).

    Returns:
        (B, d) and (P, d), unit length.
    """
    handles, seen = [], {}
    for name, function in beside.items():
        block = model.clip.get_submodule(name)

        def keep(_: Any, inputs: Any, name: str = name) -> None:
            seen[name] = inputs[0]

        def add(
            block: Any, inputs: Any, output: Tensor, name: str = name, call: Beside = function
        ) -> Tensor:
            return output + call(block, inputs[0], seen[name])

        handles += [block.ln_2.register_forward_pre_hook(keep), block.register_forward_hook(add)]
    try:
        image = model.clip.encode_image(model.preprocess(images))
        text = model.clip.encode_text(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


def tokens_of(model: CLIPClassifier) -> Tensor:
    """Return the token ids (P, L) of a model's classes."""
    return torch.cat(list(model._tokens))
