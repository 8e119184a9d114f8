"""A block of a tower through `torch.compile`, and how long the compiler took."""

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

_SHAPES = 3  # for which PyTorch compiles anew, before sizes are variables to it


class Shape(NamedTuple):
    """What a block computes besides its weights.

    Attributes:
        samples: of equal length in the rows.
        heads: of the attention.
        eps: of both LayerNorms.
        activation: "quick", or the approximation of GELU, "none" or "tanh".
    """

    samples: int
    heads: int
    eps: tuple[float, float]
    activation: str


class CompiledBlock:
    """The blocks of a tower, one compiled function for all.

    The compiler runs when the first rows of a shape come; this pass is made twice then, and what
    the first one took longer is its time. After the first shapes it has one function for all.

    Attributes:
        seconds: that the compiler took so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._shapes: dict[Any, set[Any]] = {}

    @functools.cached_property
    def _function(self) -> Any:
        return torch.compile(plain_block)  # not before it is used: that imports the compiler

    def __call__(
        self, rows: Tensor, weights: Sequence[Tensor], shape: Shape, hidden: Tensor | None
    ) -> Tensor:
        """Compute what `plain_block` does."""
        trained = tuple(weight.requires_grad for weight in weights)
        kind = rows.shape[1], rows.requires_grad, trained, weights[2].dtype, shape[1:]
        known = self._shapes.setdefault(kind, set())
        size = len(rows), shape.samples
        if size not in known and len(known) < _SHAPES:
            known.add(size)
            first, second = (self._time(rows, weights, shape, hidden) for _ in range(2))
            self.seconds += max(0.0, first - second)
        return self._function(rows, weights, shape, hidden)

    def _time(
        self, rows: Tensor, weights: Sequence[Tensor], shape: Shape, hidden: Tensor | None
    ) -> float:
        """Return the seconds of a forward and backward pass that nothing is kept of.

        Raises:
            UserError: PyTorch's compiler fails.
        """
        from torch._dynamo.exc import TorchDynamoException

        start = time.perf_counter()
        alone = rows.detach().requires_grad_(rows.requires_grad)
        try:
            with saved_tensors_hooks(_as_it_is, _as_it_is):  # a checkpoint counts what is saved
                found = self._function(alone, weights, shape, hidden)
            inputs = [t for t in (alone, *weights) if t.requires_grad]
            if inputs:
                torch.autograd.grad(found, inputs, torch.ones_like(found))
        except TorchDynamoException as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = " ".join(lines[:2])
            raise UserError(
                f"--compile: PyTorch's compiler fails on this machine ({reason}); leave it out"
            ) from error
        if rows.device.type == "cuda":
            torch.cuda.synchronize(rows.device)
        return time.perf_counter() - start


def _as_it_is(tensor: Tensor) -> Tensor:
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
        hidden: (samples, 1, N, N), True where a row must not look.
    """
    gain_1, bias_1, qkv, qkv_bias, out, out_bias, gain_2, bias_2, up, up_bias, down, down_bias = (
        weights
    )
    normed = F.layer_norm(rows, rows.shape[1:], gain_1, bias_1, shape.eps[0]).to(qkv.dtype)
    found = self_attention(F.linear(normed, qkv, qkv_bias), shape.samples, shape.heads, hidden)
    rows = rows + F.linear(found, out) + out_bias
    normed = F.layer_norm(rows, rows.shape[1:], gain_2, bias_2, shape.eps[1]).to(up.dtype)
    inner = F.linear(normed, up, up_bias)
    if shape.activation == "quick":
        inner = inner * torch.sigmoid(QUICK * inner)
    else:
        inner = F.gelu(inner, approximate=shape.activation)
    return rows + F.linear(inner, down) + down_bias


def shape_of(block: Any, samples: int) -> Shape | None:
    """Return what a known block computes besides its weights; None where it is not a plain one."""
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
