"""Modules that run beside the blocks of both towers, where no change of a weight can express them.

An adapter is a submodule of its block, `block.adapter`, so that its parameters are the model's. The
fast encoders run it; open_clip's own forward does not know it. Blocks without one run as ever.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from cl_clipfit.clip.encoders import text, vision
from cl_clipfit.errors import UserError


class BlockAdapter(nn.Module, ABC):
    """Adds to the output of a block; a method implements `forward`."""

    @abstractmethod
    def forward(self, block: Any, rows: Tensor, attended: Tensor, samples: int) -> Tensor:
        """Return what is added to the output of the block: (T, width), in fp32.

        Rows of all samples follow each other, N of each. Those of an image begin with its class
        token. Those of text are bundles of prompts that share what they begin with, at least the
        start token; see `packing`.

        Args:
            block: the block.
            rows: (T, width), its input, in fp32.
            attended: (T, width), the rows after its attention: the input of its second LayerNorm.
            samples: T / N.
        """


def block_widths(clip: Any) -> tuple[list[int], list[int]]:
    """Return the width of every block of the image tower and of the text tower.

    Raises:
        UserError: the fast encoders do not support a tower, and would not run its adapters.
    """
    if not (vision.known_tower(clip.visual) and text.known_tower(clip)):
        raise UserError(
            "adapters within the blocks need a ViT and a causal text tower of open_clip: choose"
            " such a model, as ViT-B-16"
        )
    image, words = ([int(b.ln_1.normalized_shape[0]) for b in blocks] for blocks in _blocks(clip))
    return image, words


def attach_adapters(
    clip: Any, image: Sequence[BlockAdapter], words: Sequence[BlockAdapter]
) -> None:
    """Run adapters beside the last blocks of both towers from now on.

    Args:
        clip: an open_clip model with `block_widths`.
        image: adapters of the last blocks of the image tower, in the order of the blocks.
        words: those of the text tower.

    Raises:
        ValueError: the model has adapters already.
    """
    for blocks, adapters in zip(_blocks(clip), (image, words), strict=True):
        if any(hasattr(block, "adapter") for block in blocks):
            raise ValueError("this model already has adapters: load the model again")
        for block, adapter in zip(blocks[len(blocks) - len(adapters) :], adapters, strict=True):
            block.adapter = adapter


def _blocks(clip: Any) -> tuple[list[Any], list[Any]]:
    towers = clip.visual, getattr(clip, "text", clip)
    image, words = (list(tower.transformer.resblocks) for tower in towers)
    return image, words
