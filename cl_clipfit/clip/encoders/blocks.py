"""The pre-norm residual block of open_clip's towers, on packed rows and in two precisions.

The modules stay open_clip's own: here are only the arithmetic and its order. Rows of all samples
lie in one matrix (T, width). In bf16 the matrix products and attention are bfloat16 over copies of
the frozen weights made once; the residual stream, LayerNorms and whatever trains stay in fp32.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils.checkpoint import checkpoint

from cl_clipfit.clip.encoders.attention import self_attention
from cl_clipfit.clip.encoders.compiled import CompiledBlock, shape_of
from cl_clipfit.clip.encoders.stock import QUICK, plain, plain_norm


class WeightCopies:
    """Copies of frozen weights in the type of the matrix products.

    One is made again once its weight changes in place. A copy of this object is empty: its weights
    will be others.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], tuple[Any, int, Tensor]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "WeightCopies":
        return WeightCopies()

    def __reduce__(self) -> tuple[type["WeightCopies"], tuple[()]]:
        return WeightCopies, ()

    def of(self, parameter: Tensor, owner: nn.Module, name: str, dtype: torch.dtype) -> Tensor:
        """Return `parameter` in another type; one that trains anew each time, with gradients."""
        if parameter.dtype == dtype:
            return parameter
        key, version = (id(owner), name), parameter._version
        if parameter.requires_grad:
            self._known.pop(key, None)  # fused optimisers change it and leave its version
            return parameter.to(dtype)
        known = self._known.get(key)
        if known is None or known[0]() is not parameter or known[1] != version:
            copied = _copied(parameter, dtype)
            known = self._known[key] = (weakref.ref(parameter), version, copied)
        elif known[2].device != parameter.device:  # .to() moves a parameter in its place
            copied = _copied(parameter, dtype)
            known = self._known[key] = (known[0], version, copied)
        return known[2]


@torch.inference_mode(False)  # it is for training too
def _copied(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    return parameter.detach().to(dtype)


def known_blocks(transformer: nn.Module) -> bool:
    """Tell whether `Arithmetic.run` computes what these blocks do."""
    from open_clip.transformer import ResidualAttentionBlock, Transformer

    blocks: Iterable[Any] = getattr(transformer, "resblocks", ())
    return plain(transformer, Transformer) and all(
        plain(block, ResidualAttentionBlock) and _known_parts(block) for block in blocks
    )


def _known_parts(block: Any) -> bool:
    from open_clip.transformer import LayerScale

    attention, mlp, scales = block.attn, block.mlp, (block.ls_1, block.ls_2)
    return (
        plain(attention, nn.MultiheadAttention)
        and attention.in_proj_weight is not None
        and attention.in_proj_weight.dtype == torch.float32
        and attention.in_proj_bias is not None
        and attention.bias_k is None
        and attention.dropout == 0
        and "attention" not in vars(block)
        and all(plain(scale, nn.Identity) or plain(scale, LayerScale) for scale in scales)
        and not attention.add_zero_attn
        and not hasattr(block, "ln_1_kv")
        and plain(mlp, nn.Sequential)
        and list(mlp._modules) == ["c_fc", "gelu", "c_proj"]
        and plain(mlp.gelu, type(mlp.gelu))
        and plain(mlp.c_fc, nn.Linear)
        and plain(mlp.c_proj, nn.Linear)
        and mlp.c_fc.bias is not None
        and mlp.c_proj.bias is not None
        and plain(attention.out_proj, NonDynamicallyQuantizableLinear)
    )


def norm(module: Any, rows: Tensor, samples: int) -> Tensor:
    """Apply a LayerNorm to rows (T, width) of `samples` of equal length, in fp32.

    A LayerNorm with a forward of its own, or of another class, sees (samples, T / samples, width).
    """
    if plain_norm(module):
        return F.layer_norm(rows, module.normalized_shape, module.weight, module.bias, module.eps)
    return module(rows.view(samples, -1, rows.shape[-1])).reshape(rows.shape)


class Arithmetic:
    """The products of a pass: their type, and the copies of weights in it.

    Args:
        copies: of the weights of one tower.
        dtype: torch.float32 or torch.bfloat16.
        compiled: what runs plain blocks in place of this.
    """

    def __init__(
        self, copies: WeightCopies, dtype: torch.dtype, compiled: CompiledBlock | None = None
    ) -> None:
        self.copies, self.dtype, self.compiled = copies, dtype, compiled

    def weight(self, owner: nn.Module, name: str) -> Tensor:
        """Return a parameter of a module in the type of the products."""
        return self.copies.of(getattr(owner, name), owner, name, self.dtype)

    def linear(self, module: nn.Module, rows: Tensor, prefix: str = "", part: Any = ...) -> Tensor:
        """Apply a linear layer, or the rows `part` of its weight, to rows of the products' type."""
        weight, bias = (self.weight(module, f"{prefix}{n}") for n in ("weight", "bias"))
        return F.linear(rows, weight[part], bias[part])

    def run(
        self, blocks: Sequence[Any], rows: Tensor, samples: int,
        hidden: Tensor | None = None, recompute: bool = False,
    ) -> Tensor:  # fmt: skip
        """Run blocks on rows (T, width) of `samples` of equal length N.

        Args:
            blocks: for which `known_blocks` holds.
            rows: what enters the first.
            samples: how many.
            hidden: (samples, 1, N, N), True where a row must not look.
            recompute: keep the input of each block alone, and compute the rest again in the
                backward pass.
        """
        for block in blocks:
            if recompute and torch.is_grad_enabled():
                rows = checkpoint(self._block, block, rows, samples, hidden, use_reentrant=False)
            else:
                rows = self._block(block, rows, samples, hidden)
        return rows

    def _block(self, block: Any, rows: Tensor, samples: int, hidden: Tensor | None) -> Tensor:
        shape = shape_of(block, samples) if self.compiled else None
        if self.compiled and shape:
            return self.compiled(rows, self._weights(block), shape, hidden)
        found = self.attention(block, rows, samples, hidden)
        rows = self.add_linear(rows, block.attn.out_proj, found, block.ls_1)
        return self.mlp(block, rows, samples)

    def _weights(self, block: Any) -> list[Tensor]:
        """Return the weights of a block as `plain_block` takes them."""
        attention, up, down = block.attn, block.mlp.c_fc, block.mlp.c_proj
        return [
            block.ln_1.weight, block.ln_1.bias,
            self.weight(attention, "in_proj_weight"), self.weight(attention, "in_proj_bias"),
            self.weight(attention.out_proj, "weight"), attention.out_proj.bias,
            block.ln_2.weight, block.ln_2.bias,
            self.weight(up, "weight"), self.weight(up, "bias"),
            self.weight(down, "weight"), down.bias,
        ]  # fmt: skip

    def attention(self, block: Any, rows: Tensor, samples: int, hidden: Tensor | None) -> Tensor:
        """Return what every row finds, (T, width), in the products' type; see `run`."""
        normed = norm(block.ln_1, rows, samples).to(self.dtype)
        qkv = self.linear(block.attn, normed, "in_proj_")
        return self_attention(qkv, samples, block.attn.num_heads, hidden)

    def mlp(self, block: Any, rows: Tensor, samples: int) -> Tensor:
        """Add what a block's second half computes to the rows, in fp32."""
        hidden = self.linear(block.mlp.c_fc, norm(block.ln_2, rows, samples).to(self.dtype))
        hidden = activation(block.mlp.gelu)(hidden)
        return self.add_linear(rows, block.mlp.c_proj, hidden, block.ls_2)

    def add_linear(
        self, rows: Tensor, module: Any, inputs: Tensor, layer_scale: nn.Module
    ) -> Tensor:
        """Add a linear layer of the inputs, scaled where a block does that, to the rows, in fp32.

        The bias is added last: in fp32, and without a copy of it for every row.
        """
        if not isinstance(layer_scale, nn.Identity):
            return rows + layer_scale(self.linear(module, inputs))
        return (rows + F.linear(inputs, self.weight(module, "weight"))).add_(module.bias)


def activation(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what computes an activation module's function fastest."""
    from open_clip.transformer import QuickGELU

    if plain(module, QuickGELU):
        return _QuickGelu.apply
    return module


class _QuickGelu(torch.autograd.Function):
    """x sigmoid(1.702 x) = silu(1.702 x) / 1.702, whose passes over memory are half as many."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        stretched = hidden * QUICK
        ctx.save_for_backward(stretched)
        return F.silu(stretched).mul_(1 / QUICK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (stretched,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient, stretched)
