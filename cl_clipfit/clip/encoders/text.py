"""open_clip's causal text towers on packed prompts: no padding, shared prefixes encoded once.

The results equal those of open_clip's `encode_text` to 1e-5 in fp32, including gradients.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from cl_clipfit.clip.encoders.blocks import Arithmetic, known_blocks, norm
from cl_clipfit.clip.encoders.packing import Packed
from cl_clipfit.clip.encoders.stock import plain, plain_norm

_checked_masks: Any = WeakIdKeyDictionary()


def known_tower(clip: nn.Module) -> bool:
    """Return whether `encode_packed` supports this model's text tower.

    It does not support other classes, attention without a causal mask, a class token, or a module
    that has hooks or was replaced.
    """
    from open_clip.model import CLIP, CustomTextCLIP
    from open_clip.transformer import TextTransformer

    tower: Any = getattr(clip, "text", clip)
    kind = TextTransformer if tower is not clip else CLIP
    return (
        type(clip) in (CLIP, CustomTextCLIP)
        and "encode_text" not in vars(clip)
        and plain(tower, kind)
        and getattr(tower, "cls_emb", None) is None
        and not getattr(tower, "use_pad_mask", False)
        and not getattr(tower, "output_tokens", False)
        and _causal(tower.attn_mask)
        and _pooling(tower) in ("argmax", "eos")
        and plain(tower.token_embedding, nn.Embedding)
        and tower.token_embedding.weight.dtype == torch.float32
        and known_blocks(tower.transformer)
        and plain_norm(tower.ln_final)
        # Packing changes the neighbours of a token, which hooks would see.
        and all(plain_norm(b.ln_1) and plain_norm(b.ln_2) for b in tower.transformer.resblocks)
    )


def _causal(mask: Tensor | None) -> bool:
    """Return whether a mask (L, L) is exactly causal; the result is cached."""
    if mask is None:
        return False
    version, causal = _checked_masks.get(mask, (None, False))
    if version != mask._version:
        causal = torch.equal(mask, torch.full_like(mask, -torch.inf).triu(1))
        _checked_masks[mask] = mask._version, causal
    return causal


def _pooling(tower: Any) -> str:
    return str(getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", ""))


def end_positions(clip: nn.Module, tokens: Tensor) -> Tensor:
    """Return the positions of the end tokens of prompts (P, L), where features are read."""
    tower: Any = getattr(clip, "text", clip)
    if _pooling(tower) == "argmax":
        return tokens.argmax(1)
    end = getattr(tower, "text_eos_id", None)
    end = tower.eos_id if end is None else end
    return (tokens == end).int().argmax(1)


def encode_packed(
    clip: nn.Module,
    packed: Packed,
    arithmetic: Arithmetic,
    context: Tensor | None = None,
    recompute: bool = False,
) -> Tensor:
    """Encode packed prompts: features (P, d), not normalised.

    Args:
        clip: a model that satisfies `known_tower`.
        packed: the prompts, on the device.
        arithmetic: of the tower.
        context: (n, width), embeddings of the learned words; see `clip.context`.
        recompute: store less for the backward pass; see `Arithmetic.run`.
    """
    tower: Any = getattr(clip, "text", clip)
    *blocks, final = tower.transformer.resblocks
    rows, bundles, hidden = _embed(tower, packed, context), len(packed.hidden), packed.hidden
    rows = arithmetic.run(blocks, rows, bundles, hidden, recompute)
    # From here on, only the end tokens are needed.
    if hasattr(final, "adapter"):  # except by an adapter
        rows = arithmetic.run([final], rows, bundles, hidden, recompute)
        ends = rows.index_select(0, packed.last)
    else:
        attended = arithmetic.attention(final, rows, bundles, hidden).index_select(0, packed.last)
        ends = rows.index_select(0, packed.last)
        ends = arithmetic.add_linear(ends, final.attn.out_proj, attended, final.ls_1)
        ends = arithmetic.mlp(final, ends, len(ends))
    features = norm(tower.ln_final, ends, len(ends))
    projection = tower.text_projection
    if projection is None:
        return features
    return projection(features) if isinstance(projection, nn.Module) else features @ projection


def _embed(tower: Any, packed: Packed, context: Tensor | None) -> Tensor:
    rows = F.embedding(packed.ids, tower.token_embedding.weight)
    if context is not None:
        # Copies of the start token mark the positions of the context, from position 1.
        within = (packed.positions > 0) & (packed.positions <= len(context))
        learned = (packed.ids == packed.ids[0]) & within
        place = (packed.positions - 1).clamp(0, len(context) - 1)
        rows = torch.where(learned[:, None], context[place], rows)
    return rows + tower.positional_embedding[packed.positions]
