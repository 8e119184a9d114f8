"""Run the blocks of a tower through `torch.compile`, and measure the compilation time."""

import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from cl_clipfit.clip.encoders.attention import self_attention
from cl_clipfit.clip.encoders.stock import QUICK, plain, plain_norm
from cl_clipfit.errors import UserError

_SHAPES = 3  # sizes that PyTorch compiles for separately, before it makes them dynamic


class Shape(NamedTuple):
    """The settings of a block other than its weights.

    Attributes:
        samples: number of samples of equal length in the rows.
        heads: number of attention heads.
        eps: of both LayerNorms.
        activation: "quick", or the `approximate` setting of GELU, "none" or "tanh".
    """

    samples: int
    heads: int
    eps: tuple[float, float]
    activation: str


class CompiledBlock:
    """One compiled function for all blocks of a tower.

    The compiler runs on the first rows of a shape; that pass is run twice, and the difference is
    the compilation time. After the first shapes, one function with dynamic sizes serves all.

    Attributes:
        seconds: total compilation time so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._shapes: dict[Any, set[Any]] = {}

    @functools.cached_property
    def _function(self) -> Any:
        return torch.compile(plain_block)  # only when used: this imports the compiler

    def __call__(
        self, rows: Tensor, weights: Sequence[Tensor], shape: Shape, hidden: Tensor | None
    ) -> Tensor:
        """Run `plain_block`, compiled."""
        trained = tuple(weight.requires_grad for weight in weights)
        kind = rows.shape[1], rows.requires_grad, trained, weights[2].dtype, shape[1:]
        sizes = self._shapes.setdefault(kind, set())
        size = len(rows), shape.samples
        if size not in sizes and len(sizes) < _SHAPES:
            sizes.add(size)
            first, second = (self._time(rows, weights, shape, hidden) for _ in range(2))
            self.seconds += max(0.0, first - second)
        return self._function(rows, weights, shape, hidden)

    def _time(
        self, rows: Tensor, weights: Sequence[Tensor], shape: Shape, hidden: Tensor | None
    ) -> float:
        """Return the seconds of a forward and backward pass, and discard its results.

        Raises:
            UserError: PyTorch's compiler fails.
        """
        from torch._dynamo.exc import TorchDynamoException

        start = time.perf_counter()
        leaf = rows.detach().requires_grad_(rows.requires_grad)
        try:
            with saved_tensors_hooks(
                _identity, _identity
            ):  # an outer checkpoint counts saved tensors
                output = self._function(leaf, weights, shape, hidden)
            inputs = [t for t in (leaf, *weights) if t.requires_grad]
            if inputs:
                torch.autograd.grad(output, inputs, torch.ones_like(output))
        except TorchDynamoException as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = " ".join(lines[:2])
            raise UserError(
                f"--compile: PyTorch's compiler fails on this machine ({reason}); omit it"
            ) from error
        if rows.device.type == "cuda":
            torch.cuda.synchronize(rows.device)
        return time.perf_counter() - start


def _identity(tensor: Tensor) -> Tensor:
    return tensor


def plain_block(
    rows: Tensor, weights: Sequence[Tensor], shape: Shape, hidden: Tensor | None
) -> Tensor:
    """Run a pre-norm block on rows (T, width), in fp32; products in the type of their weights.

    Args:
        rows: of `shape.samples` samples of equal length N.
        weights: weight and bias of the first LayerNorm, of queries, keys and values, of the output
            of the attention, of the second LayerNorm, and of both linear layers.
        shape: see `Shape`.
        hidden: (samples, 1, N, N), True where a row must not attend.
    """
    scale_1, bias_1, qkv, qkv_bias, out, out_bias, scale_2, bias_2, up, up_bias, down, down_bias = (
        weights
    )
    normed = F.layer_norm(rows, rows.shape[1:], scale_1, bias_1, shape.eps[0]).to(qkv.dtype)
    attended = self_attention(F.linear(normed, qkv, qkv_bias), shape.samples, shape.heads, hidden)
    rows = rows + F.linear(attended, out) + out_bias
    normed = F.layer_norm(rows, rows.shape[1:], scale_2, bias_2, shape.eps[1]).to(up.dtype)
    inner = F.linear(normed, up, up_bias)
    if shape.activation == "quick":
        inner = inner * torch.sigmoid(QUICK * inner)
    else:
        inner = F.gelu(inner, approximate=shape.activation)
    return rows + F.linear(inner, down) + down_bias


def shape_of(block: Any, samples: int) -> Shape | None:
    """Return the settings of a supported block, or None if it cannot be compiled."""
    from open_clip.transformer import QuickGELU

    norms, activation = (block.ln_1, block.ln_2), block.mlp.gelu
    if not all(plain_norm(n) and n.weight is not None and n.bias is not None for n in norms):
        return None
    if not all(plain(scale, nn.Identity) for scale in (block.ls_1, block.ls_2)):
        return None
    quick = plain(activation, QuickGELU)
    if not quick and not plain(activation, nn.GELU):
        return None
    eps = block.ln_1.eps, block.ln_2.eps
    return Shape(samples, block.attn.num_heads, eps, "quick" if quick else activation.approximate)
