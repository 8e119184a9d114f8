"""open_clip's causal text towers on packed prompts: no padding, shared beginnings encoded once.

Same weights, same result as open_clip's `encode_text`: to 1e-5 in fp32, gradients too.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cl_clipfit.clip.blocks import Arithmetic, attend, known_blocks, norm, plain
from cl_clipfit.clip.packing import Packed


def known_tower(clip: nn.Module) -> bool:
    """Tell whether this model's text tower is a causal one that `encode_packed` computes.

    Another class, attention without a causal mask, a class token, or anything hooked to one of its
    modules or put in the place of one is not.
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
        and tower.attn_mask is not None
        and _pooling(tower) in ("argmax", "eos")
        and plain(tower.token_embedding, nn.Embedding)
        and tower.token_embedding.weight.dtype == torch.float32
        and known_blocks(tower.transformer)
    )


def _pooling(tower: Any) -> str:
    return str(getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", ""))


def end_positions(clip: nn.Module, tokens: Tensor) -> Tensor:
    """Return where the prompts (P, L) of a model end: the tokens that the features are read at."""
    tower: Any = getattr(clip, "text", clip)
    if _pooling(tower) == "argmax":
        return tokens.argmax(1)
    end = getattr(tower, "text_eos_id", None) or tower.eos_id
    return (tokens == end).int().argmax(1)


class PackedText:
    """One pass of a text tower over packed prompts.

    Args:
        clip: a model for which `known_tower` holds.
        packed: the prompts, on the device.
        arithmetic: of the tower.
    """

    def __init__(self, clip: nn.Module, packed: Packed, arithmetic: Arithmetic) -> None:
        self.tower: Any = getattr(clip, "text", clip)
        self.packed, self.arithmetic = packed, arithmetic
        device, (prefix, room) = packed.ids.device, packed.grids
        self.prefixes = len(packed.lengths) - len(packed.groups)
        before = torch.arange(prefix, device=device) < packed.lengths[: self.prefixes, None]
        self.before = before[packed.groups][:, None, None]  # (P, 1, 1, prefix)
        own = torch.arange(self.prefixes, device=device)
        self.owners = torch.cat([own, packed.groups])
        nothing = self.before.new_zeros(self.prefixes, 1, 1, prefix)
        seen = torch.cat([nothing, self.before]).expand(-1, -1, room, -1)
        causal = torch.ones(room, room, device=device).tril().bool()
        causal = causal.expand(len(packed.lengths), 1, -1, -1)
        self.mask = torch.cat([seen, causal], 3)  # (G + P, 1, room, prefix + room)

    def encode(self, context: Tensor | None = None, recompute: bool = False) -> Tensor:
        """Return features (P, d), not normalised.

        Args:
            context: (n, width), what takes the places of learned words; see `context`.
            recompute: keep the input of each block alone.
        """
        rows = self._embed(context)
        blocks = list(self.tower.transformer.resblocks)
        for block in blocks[:-1]:
            if recompute and torch.is_grad_enabled():
                rows = checkpoint(self._block, block, rows, use_reentrant=False)
            else:
                rows = self._block(block, rows)
        rows = self._last_block(blocks[-1], rows)
        features = norm(self.tower.ln_final, rows, len(rows))
        projection = self.tower.text_projection
        if projection is None:
            return features
        return projection(features) if isinstance(projection, nn.Module) else features @ projection

    def _embed(self, context: Tensor | None) -> Tensor:
        packed = self.packed
        rows = F.embedding(packed.ids, self.tower.token_embedding.weight)
        if context is not None:
            # Copies of the start token hold the places of the context, from position 1 on.
            start = packed.ids[0]
            learned = (packed.ids == start) & (packed.positions > 0)
            place = (packed.positions - 1).clamp(0, len(context) - 1)
            rows = torch.where(learned[:, None], context[place], rows)
        return rows + self.tower.positional_embedding[packed.positions]

    def _block(self, block: Any, rows: Tensor) -> Tensor:
        width, heads = rows.shape[1], block.attn.num_heads
        normed = norm(block.ln_1, rows, len(rows)).to(self.arithmetic.dtype)
        qkv = self.arithmetic.linear(block.attn, normed, "in_proj_")
        query, key, value = self._grid(qkv, heads)
        found = attend(query, *self._behind_prefix(key, value, self.owners), self.mask)
        found = found.transpose(1, 2).reshape(-1, width)[self.packed.slots]
        rows = self.arithmetic.add_linear(rows, block.attn.out_proj, found, block.ls_1)
        return self.arithmetic.mlp(block, rows, len(rows))

    def _last_block(self, block: Any, rows: Tensor) -> Tensor:
        """Return the end tokens (P, width) after a block: no other asks for anything."""
        width, heads, packed = rows.shape[1], block.attn.num_heads, self.packed
        normed = norm(block.ln_1, rows, len(rows)).to(self.arithmetic.dtype)
        ends = normed[packed.last]
        query = self.arithmetic.linear(block.attn, ends, "in_proj_", slice(width))
        pairs = self.arithmetic.linear(block.attn, normed, "in_proj_", slice(width, None))
        own_key, own_value = self._grid(pairs, heads)
        key, value = self._behind_prefix(own_key, own_value, packed.groups)
        places = torch.arange(packed.grids[1], device=packed.ids.device)
        own = (places < packed.lengths[self.prefixes :, None])[:, None, None]
        mask = torch.cat([self.before, own], 3)
        found = attend(query.view(len(query), heads, 1, -1), key, value, mask)
        found = found.reshape(len(query), width)
        tokens = rows[packed.last]
        tokens = self.arithmetic.add_linear(tokens, block.attn.out_proj, found, block.ls_1)
        return self.arithmetic.mlp(block, tokens, len(tokens))

    def _grid(self, rows: Tensor, heads: int) -> tuple[Tensor, ...]:
        """Put rows (T, n width) at their places: n tensors (sequences, heads, room, size)."""
        packed, parts = self.packed, rows.shape[1] // self.tower.positional_embedding.shape[1]
        sequences, room = len(packed.lengths), packed.grids[1]
        grid = rows.new_zeros(sequences * room, rows.shape[1]).index_copy(0, packed.slots, rows)
        return grid.view(sequences, room, parts, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def _behind_prefix(self, key: Tensor, value: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
        """Put the keys and values of its prefix before those of every sequence.

        Args:
            key: (G + P, heads, room, size).
            value: likewise.
            owners: the prefix of every sequence that asks; the last ones of all.
        """
        length, pairs = self.packed.grids[0], []
        for part in (key, value):
            before = part[: self.prefixes, :, :length]
            if self.prefixes > 1:
                before = before[owners]
            before = before.expand(len(owners), -1, -1, -1)
            pairs.append(torch.cat([before, part[-len(owners) :]], 2))
        return pairs[0], pairs[1]
