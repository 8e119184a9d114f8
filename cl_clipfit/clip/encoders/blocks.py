"""The pre-norm residual block of open_clip's towers, on packed rows and in two precisions.

The modules are open_clip's; this file only defines the arithmetic and its order. The rows of all
samples form one matrix (T, width). In bf16, matrix products and attention use bfloat16 and cached
copies of the frozen weights; the residual stream, LayerNorms and trainable parameters stay in fp32.
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

    A copy is renewed when its weight changes in place. A copy of this object is empty, because its
    weights will be different ones.
    """

    def __init__(self) -> None:
        self._copies: dict[tuple[int, str], tuple[Any, int, Tensor]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "WeightCopies":
        return WeightCopies()

    def __reduce__(self) -> tuple[type["WeightCopies"], tuple[()]]:
        return WeightCopies, ()

    def of(self, parameter: Tensor, owner: nn.Module, name: str, dtype: torch.dtype) -> Tensor:
        """Return `parameter` in another type; a trainable one is converted anew, with gradients."""
        if parameter.dtype == dtype:
            return parameter
        key, version = (id(owner), name), parameter._version
        if parameter.requires_grad:
            self._copies.pop(key, None)  # fused optimisers change it but not its version
            return parameter.to(dtype)
        cached = self._copies.get(key)
        if cached is None or cached[0]() is not parameter or cached[1] != version:
            copied = _copied(parameter, dtype)
            cached = self._copies[key] = (weakref.ref(parameter), version, copied)
        elif cached[2].device != parameter.device:  # .to() moves a parameter in place
            copied = _copied(parameter, dtype)
            cached = self._copies[key] = (cached[0], version, copied)
        return cached[2]


@torch.inference_mode(False)  # the copy is also used in training
def _copied(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    return parameter.detach().to(dtype)


def known_blocks(transformer: nn.Module) -> bool:
    """Return whether `Arithmetic.run` supports these blocks."""
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

    A LayerNorm of another class, or with a replaced forward, gets (samples, T / samples, width).
    """
    if plain_norm(module):
        return F.layer_norm(rows, module.normalized_shape, module.weight, module.bias, module.eps)
    return module(rows.view(samples, -1, rows.shape[-1])).reshape(rows.shape)


class Arithmetic:
    """The matrix products of a pass: their type, and copies of the weights in that type.

    Args:
        copies: of the weights of one tower.
        dtype: torch.float32 or torch.bfloat16.
        compiled: runs supported blocks instead, if given.
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
            blocks: blocks that satisfy `known_blocks`.
            rows: the input of the first block.
            samples: number of samples.
            hidden: (samples, 1, N, N), True where a row must not attend.
            recompute: store only the input of each block, and recompute the rest in the backward
                pass.
        """
        for block in blocks:
            if recompute and torch.is_grad_enabled():
                rows = checkpoint(self._block, block, rows, samples, hidden, use_reentrant=False)
            else:
                rows = self._block(block, rows, samples, hidden)
        return rows

    def _block(self, block: Any, rows: Tensor, samples: int, hidden: Tensor | None) -> Tensor:
        adapter = getattr(block, "adapter", None)  # see `adapters`
        shape = shape_of(block, samples) if self.compiled and adapter is None else None
        if self.compiled and shape:
            return self.compiled(rows, self._weights(block), shape, hidden)
        mixed = self.attention(block, rows, samples, hidden)
        attended = self.add_linear(rows, block.attn.out_proj, mixed, block.ls_1)
        output = self.mlp(block, attended, samples)
        return output if adapter is None else output + adapter(block, rows, attended, samples)

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
        """Return the attention's output, (T, width), in the products' type; see `run`."""
        normed = norm(block.ln_1, rows, samples).to(self.dtype)
        qkv = self.linear(block.attn, normed, "in_proj_")
        return self_attention(qkv, samples, block.attn.num_heads, hidden)

    def mlp(self, block: Any, rows: Tensor, samples: int) -> Tensor:
        """Add the output of a block's MLP to the rows, in fp32."""
        hidden = self.linear(block.mlp.c_fc, norm(block.ln_2, rows, samples).to(self.dtype))
        hidden = activation(block.mlp.gelu)(hidden)
        return self.add_linear(rows, block.mlp.c_proj, hidden, block.ls_2)

    def add_linear(
        self, rows: Tensor, module: Any, inputs: Tensor, layer_scale: nn.Module
    ) -> Tensor:
        """Add a linear layer of the inputs, with the block's layer scale, to the rows, in fp32.

        The bias is added last: in fp32, and without expanding it to every row.
        """
        if not isinstance(layer_scale, nn.Identity):
            return rows + layer_scale(self.linear(module, inputs))
        return (rows + F.linear(inputs, self.weight(module, "weight"))).add_(module.bias)


def activation(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the fastest implementation of an activation module."""
    from open_clip.transformer import QuickGELU

    if plain(module, QuickGELU):
        return _QuickGelu.apply
    return module


class _QuickGelu(torch.autograd.Function):
    """x sigmoid(1.702 x) = silu(1.702 x) / 1.702, which needs half as many passes over memory."""

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
