"""What an image tower computes, and matrix products to compare its speed with."""

from collections.abc import Callable
from typing import Any

import torch


def image_tower_flops(visual: Any, batch_size: int, class_token_only: bool) -> int:
    """Count the operations of a forward and backward pass: 2 for a product and its addition.

    The patch embedding in the forward pass; products with weights in both (backward those for the
    gradient of the input alone, as the weights are frozen); the two products of attention, and
    their four backward. Not what a kernel computes a second time.

    Args:
        visual: an open_clip ViT whose LayerNorms train.
        batch_size: images.
        class_token_only: the last block has queries, output projection and feed-forward network
            for the class token alone.
    """
    width, blocks = visual.conv1.out_channels, visual.transformer.resblocks
    patches = visual.grid_size[0] * visual.grid_size[1]
    rows, hidden = patches + 1, blocks[0].mlp.c_fc.out_features
    total = 2 * patches * visual.conv1.weight.numel()
    for number in range(len(blocks)):
        asking = 1 if class_token_only and number == len(blocks) - 1 else rows
        keys_values = 2 * rows * width * 2 * width
        per_row = 2 * width * width + 2 * width * hidden  # queries, output; feed-forward
        attention = 2 * 2 * asking * rows * width
        total += 2 * (keys_values + 2 * asking * per_row) + 3 * attention
    total += 2 * 2 * visual.proj.numel()
    return batch_size * total


class Matmul:
    """A product (m, k) @ (k, n) to be timed.

    Args:
        sizes: m, k and n.
        dtype: of all three matrices.
        device: where they are.
    """

    def __init__(
        self, sizes: tuple[int, int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        m, k, n = sizes
        self.flops = 2 * m * k * n
        # On a GPU one product is too short for a clock beside it.
        self.calls = 50 if device.type == "cuda" else 1
        left = torch.randn(m, k, device=device).to(dtype)
        right = torch.randn(k, n, device=device).to(dtype)
        out = left @ right
        self._product: Callable[[], Any] = lambda: torch.mm(left, right, out=out)

    def __call__(self) -> None:
        """Multiply `calls` times."""
        for _ in range(self.calls):
            self._product()


def tower_matmul(visual: Any, batch_size: int) -> tuple[int, int, int]:
    """Return m, k and n of an image tower's largest product: (tokens, width) @ (width, hidden)."""
    rows = visual.grid_size[0] * visual.grid_size[1] + 1
    c_fc = visual.transformer.resblocks[0].mlp.c_fc
    return batch_size * rows, c_fc.in_features, c_fc.out_features
