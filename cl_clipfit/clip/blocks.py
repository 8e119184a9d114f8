"""The pre-norm residual block of open_clip's towers, on packed rows and in two precisions.

The modules stay open_clip's own: here are only the arithmetic and its order. Rows of all samples
lie in one matrix (T, width). In bf16 the matrix products and attention are bfloat16 over copies of
the frozen weights made once; the residual stream, LayerNorms and whatever trains stay in fp32.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

_QUICK = 1.702  # of QuickGELU, x * sigmoid(1.702 x)


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
        if parameter.requires_grad:
            return parameter.to(dtype)
        key, version = (id(owner), name), parameter._version
        known = self._known.get(key)
        if known is None or known[0]() is not parameter or known[1] != version:
            copied = parameter.detach().to(dtype)
            known = self._known[key] = (weakref.ref(parameter), version, copied)
        elif known[2].device != parameter.device:  # .to() moves a parameter in its place
            copied = parameter.detach().to(dtype)
            known = self._known[key] = (known[0], version, copied)
        return known[2]


def plain(module: nn.Module, kind: type) -> bool:
    """Tell whether a module is exactly of this class, with nothing hooked to it or replaced."""
    hooked = (
        module._forward_hooks or module._forward_pre_hooks
        or module._backward_hooks or module._backward_pre_hooks
    )  # fmt: skip
    return type(module) is kind and not hooked and "forward" not in vars(module)


def known_blocks(transformer: nn.Module) -> bool:
    """Tell whether `run_blocks` computes what these blocks compute."""
    from open_clip.transformer import ResidualAttentionBlock, Transformer

    blocks: Iterable[Any] = getattr(transformer, "resblocks", ())
    return plain(transformer, Transformer) and all(
        plain(block, ResidualAttentionBlock) and _known_parts(block) for block in blocks
    )


def _known_parts(block: Any) -> bool:
    attention, mlp = block.attn, block.mlp
    return (
        plain(attention, nn.MultiheadAttention)
        and attention.in_proj_weight is not None
        and attention.in_proj_weight.dtype == torch.float32
        and attention.in_proj_bias is not None
        and attention.bias_k is None
        and attention.dropout == 0
        and not attention.add_zero_attn
        and not hasattr(block, "ln_1_kv")
        and plain(mlp, nn.Sequential)
        and list(mlp._modules) == ["c_fc", "gelu", "c_proj"]
        and plain(mlp.c_fc, nn.Linear)
        and plain(mlp.c_proj, nn.Linear)
        and mlp.c_fc.bias is not None
        and mlp.c_proj.bias is not None
        and plain(attention.out_proj, NonDynamicallyQuantizableLinear)
    )


def norm(module: nn.Module, rows: Tensor, samples: int) -> Tensor:
    """Apply a LayerNorm to rows (T, width) of `samples` of equal length, in fp32.

    A LayerNorm with a forward of its own, or of another class, sees (samples, T / samples, width).
    """
    from open_clip.transformer import LayerNorm, LayerNormFp32

    kinds = (LayerNorm, LayerNormFp32, nn.LayerNorm)
    if isinstance(module, kinds) and any(plain(module, kind) for kind in kinds):
        return F.layer_norm(rows, module.normalized_shape, module.weight, module.bias, module.eps)
    return module(rows.view(samples, -1, rows.shape[-1])).reshape(rows.shape)


class Arithmetic:
    """The products of a pass: their type, and the copies of weights in it.

    Args:
        copies: of the weights of one tower.
        dtype: torch.float32 or torch.bfloat16.
    """

    def __init__(self, copies: WeightCopies, dtype: torch.dtype) -> None:
        self.copies, self.dtype = copies, dtype

    def weight(self, owner: nn.Module, name: str) -> Tensor:
        """Return a parameter of a module in the type of the products."""
        return self.copies.of(getattr(owner, name), owner, name, self.dtype)

    def linear(self, module: nn.Module, rows: Tensor, prefix: str = "", part: Any = ...) -> Tensor:
        """Apply a linear layer, or the rows `part` of its weight, to rows of the products' type."""
        weight, bias = (self.weight(module, f"{prefix}{n}") for n in ("weight", "bias"))
        return F.linear(rows, weight[part], bias[part])

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
        stretched = hidden * _QUICK
        ctx.save_for_backward(stretched)
        return F.silu(stretched).mul_(1 / _QUICK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (stretched,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient, stretched)


def self_attention(qkv: Tensor, samples: int, heads: int) -> Tensor:
    """Let every row attend to all rows of its sample.

    Args:
        qkv: (T, 3 width), queries, keys and values of `samples` of equal length.
        samples: how many.
        heads: of the attention.

    Returns:
        (T, width).
    """
    if qkv.requires_grad and qkv.device.type == "cpu":
        return _SelfAttention.apply(qkv, samples, heads)
    parts = qkv.view(samples, -1, 3, heads, qkv.shape[1] // (3 * heads))
    query, key, value = (part.transpose(1, 2) for part in parts.unbind(2))
    found = F.scaled_dot_product_attention(query, key, value)
    return found.transpose(1, 2).reshape(len(qkv), -1)


class _SelfAttention(torch.autograd.Function):
    """Softmax attention as batched products: PyTorch's fused backward pass on CPUs is slow.

    On two cores of a Xeon with AMX the fused one takes 55 ms for a block of ViT-B/16 at batch 16
    in bf16, this one 13 ms.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, samples: int, heads: int) -> Tensor:
        size = qkv.shape[1] // (3 * heads)
        length = len(qkv) // samples
        split = qkv.view(samples, length, 3, heads, size).permute(2, 0, 3, 1, 4).contiguous()
        split = split.view(3, samples * heads, length, size)
        query, key, value = split.unbind(0)
        shares = torch.baddbmm(
            split.new_empty(1, 1, 1), query, key.transpose(1, 2), beta=0, alpha=size**-0.5
        )
        torch.softmax(shares, -1, out=shares)
        ctx.save_for_backward(split, shares)
        ctx.shape = samples, heads, length, size
        return _join(torch.bmm(shares, value), ctx.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        split, shares = ctx.saved_tensors
        samples, heads, length, size = ctx.shape
        query, key, value = split.unbind(0)
        gradient = gradient.view(samples, length, heads, size).transpose(1, 2)
        gradient = gradient.reshape(samples * heads, length, size)
        found = torch.empty_like(split)
        scores = torch.bmm(gradient, value.transpose(1, 2))
        torch.bmm(shares.transpose(1, 2), gradient, out=found[2])
        torch.ops.aten._softmax_backward_data.out(
            scores, shares, -1, shares.dtype, grad_input=scores
        )
        scale = size**-0.5
        torch.baddbmm(found[0], scores, key, beta=0, alpha=scale, out=found[0])
        torch.baddbmm(found[1], scores.transpose(1, 2), query, beta=0, alpha=scale, out=found[1])
        found = found.view(3, samples, heads, length, size).permute(1, 3, 0, 2, 4)
        return found.reshape(samples * length, -1), None, None


def _join(heads_first: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    samples, heads, length, size = shape
    rows = heads_first.view(samples, heads, length, size).transpose(1, 2)
    return rows.reshape(samples * length, heads * size)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend with few queries: (..., Q, d), (..., N, d), (..., N, d) -> (..., Q, d).

    Args:
        query: unscaled.
        key: what it is compared with.
        value: what is averaged.
        mask: (..., Q, N), False where a key is hidden; every query sees at least one.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ value
