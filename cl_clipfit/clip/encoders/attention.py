"""Softmax attention over packed rows: PyTorch's fused kernels, except for training on CPUs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def self_attention(qkv: Tensor, samples: int, heads: int, hidden: Tensor | None = None) -> Tensor:
    """Let every row attend to the rows of its sample.

    Args:
        qkv: (T, 3 width), queries, keys and values of `samples` of equal length N.
        samples: number of samples.
        heads: number of attention heads.
        hidden: (samples, 1, N, N), True where a row must not attend; by default, nowhere.

    Returns:
        (T, width).
    """
    if qkv.requires_grad and qkv.device.type == "cpu":
        return _SelfAttention.apply(qkv, samples, heads, hidden)
    parts = qkv.view(samples, -1, 3, heads, qkv.shape[1] // (3 * heads))
    query, key, value = (part.transpose(1, 2) for part in parts.unbind(2))
    seen = None if hidden is None else ~hidden
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    return attended.transpose(1, 2).reshape(len(qkv), -1)


class _SelfAttention(torch.autograd.Function):
    """Softmax attention as batched products: PyTorch's fused backward pass on CPUs is slow.

    On two cores of a Xeon with AMX, the fused kernel takes 55 ms for a block of ViT-B/16 at batch
    size 16 in bf16, and this one 13 ms.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, samples: int, heads: int, hidden: Tensor | None) -> Tensor:
        size = qkv.shape[1] // (3 * heads)
        length = len(qkv) // samples
        split = qkv.view(samples, length, 3, heads, size).permute(2, 0, 3, 1, 4).contiguous()
        split = split.view(3, samples * heads, length, size)
        query, key, value = split.unbind(0)
        shares = torch.baddbmm(
            split.new_empty(1, 1, 1), query, key.transpose(1, 2), beta=0, alpha=size**-0.5
        )
        if hidden is not None:
            shares.view(samples, heads, length, length).masked_fill_(hidden, -torch.inf)
        torch.softmax(shares, -1, out=shares)
        ctx.save_for_backward(split, shares)
        ctx.shape = samples, heads, length, size
        return _join(torch.bmm(shares, value), ctx.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        split, shares = ctx.saved_tensors
        samples, heads, length, size = ctx.shape
        query, key, value = split.unbind(0)
        gradient = gradient.view(samples, length, heads, size).transpose(1, 2)
        gradient = gradient.reshape(samples * heads, length, size)
        gradients = torch.empty_like(split)
        scores = torch.bmm(gradient, value.transpose(1, 2))
        torch.bmm(shares.transpose(1, 2), gradient, out=gradients[2])
        torch.ops.aten._softmax_backward_data.out(
            scores, shares, -1, shares.dtype, grad_input=scores
        )
        scale = size**-0.5
        torch.baddbmm(gradients[0], scores, key, beta=0, alpha=scale, out=gradients[0])
        torch.baddbmm(
            gradients[1], scores.transpose(1, 2), query, beta=0, alpha=scale, out=gradients[1]
        )
        gradients = gradients.view(3, samples, heads, length, size).permute(1, 3, 0, 2, 4)
        return gradients.reshape(samples * length, -1), None, None, None


def _join(heads_first: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    samples, heads, length, size = shape
    rows = heads_first.view(samples, heads, length, size).transpose(1, 2)
    return rows.reshape(samples * length, heads * size)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend with few queries: (..., Q, d), (..., N, d), (..., N, d) -> (..., Q, d)."""
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return scores.softmax(-1) @ value
