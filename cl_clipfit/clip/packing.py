"""Prompts without padding, in which what several begin with stands once.

With causal attention the features of a token depend on the tokens before it alone. So what prompts
have in common at their start needs encoding once, and what follows the end token not at all.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

_GROUP_COST = 4  # tokens that a further group must save, for the room its prefix takes


@dataclass(frozen=True)
class Packed:
    """Prompts as rows of one matrix: the prefixes of all groups first, then every prompt's rest.

    Prefixes and rests are the sequences, G + P of them.

    Attributes:
        ids: (T,), token ids.
        positions: (T,), of each token in its prompt.
        slots: (T,), where the rows stand in a grid (G + P, longest sequence).
        groups: (P,), the group of every prompt.
        lengths: (G + P,), of the sequences.
        last: (P,), the row of each prompt's end token.
        grids: longest prefix and longest sequence.
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor
    groups: Tensor
    lengths: Tensor
    last: Tensor
    grids: tuple[int, int]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "Packed":
        """Move all tensors to a device, which nothing waits for."""
        moved: dict[str, Any] = {
            name: to_device(value, device) for name, value in vars(self).items() if name != "grids"
        }
        return replace(self, **moved)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to a device without waiting for it."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def divide(prompts: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
    """Divide prompts, neighbours in order of their tokens together, into parts.

    Args:
        prompts: token ids.
        limit: of the tokens of a part, less those a prompt shares with the one before it; a longer
            prompt is a part of its own.

    Returns:
        the indices of each part's prompts.
    """
    parts: list[list[int]] = []
    used, before = 0, prompts[0]
    for i in sorted(range(len(prompts)), key=lambda i: tuple(prompts[i])):
        cost = len(prompts[i]) - _shared(before, prompts[i])
        if not parts or used + cost > limit:
            parts.append([])
            used, cost = 0, len(prompts[i])
        parts[-1].append(i)
        used, before = used + cost, prompts[i]
    return parts


def pack(prompts: Sequence[Sequence[int]]) -> Packed:
    """Pack prompts, each a sequence of token ids up to its end token.

    Prompts are put into groups that share a prefix, so that the fewest tokens remain. A prefix ends
    before the last token of any of its prompts, so that every prompt has a rest.

    Example:
        >>> packed = pack([[1, 5, 6, 7, 2], [1, 5, 6, 8, 9, 2]])
        >>> packed.ids.tolist(), packed.positions.tolist(), packed.last.tolist()
        ([1, 5, 6, 7, 2, 8, 9, 2], [0, 1, 2, 3, 4, 3, 4, 5], [4, 7])
    """
    groups = torch.empty(len(prompts), dtype=torch.long)
    ids: list[int] = []
    positions: list[int] = []
    depths = []
    for number, (members, depth) in enumerate(_best_groups(prompts)):
        groups[members] = number
        ids += prompts[members[0]][:depth]
        positions += range(depth)
        depths.append(depth)
    starts = [depths[g] for g in groups.tolist()]
    rests = [list(prompt[start:]) for prompt, start in zip(prompts, starts, strict=True)]
    for rest, start in zip(rests, starts, strict=True):
        ids += rest
        positions += range(start, start + len(rest))
    lengths = torch.tensor([*depths, *map(len, rests)])
    grids = max(depths), int(lengths.max())
    last = lengths.cumsum(0)[len(depths) :] - 1
    return Packed(
        torch.tensor(ids), torch.tensor(positions), _slots(lengths, grids[1]), groups, lengths,
        last, grids,
    )  # fmt: skip


def _slots(lengths: Tensor, room: int) -> Tensor:
    """Return where rows of sequences of these lengths stand in a grid (sequences, room)."""
    places = torch.arange(room).expand(len(lengths), -1)
    return (places < lengths[:, None]).flatten().nonzero()[:, 0]


def _best_groups(prompts: Sequence[Sequence[int]]) -> list[tuple[list[int], int]]:
    """Divide prompts into groups (members, length of their prefix) that leave few tokens."""
    order = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))
    in_order = [prompts[i] for i in order]
    shared = [_shared(a, b) for a, b in itertools.pairwise(in_order)]
    lengths = [len(prompt) for prompt in in_order]
    groups = _divide(lengths, shared, 0, len(order))[1]
    return [([order[i] for i in members], depth) for members, depth in groups]


def _divide(
    lengths: Sequence[int], shared: Sequence[int], start: int, end: int
) -> tuple[int, list[tuple[list[int], int]]]:
    """Return cost and groups of the sorted prompts start to end.

    Where they part, each branch becomes groups of its own if that saves tokens; what is left stays
    together, with the prefix that all have in common.
    """
    between = shared[start : end - 1]
    depth = min([*between, *(length - 1 for length in lengths[start:end])])
    cuts = [start + i + 1 for i, value in enumerate(between) if value == depth]
    edges = [start, *cuts, end]
    total = 0
    groups: list[tuple[list[int], int]] = []
    left: list[int] = []
    for first, last in itertools.pairwise(edges) if cuts else ():
        together = sum(lengths[first:last]) - depth * (last - first)
        apart = _divide(lengths, shared, first, last) if last > first + 1 else None
        if apart and apart[0] < together:
            total += apart[0]
            groups += apart[1]
        else:
            left += range(first, last)
    if not cuts:
        left = list(range(start, end))
    if left:
        total += _GROUP_COST + depth + sum(lengths[i] - depth for i in left)
        groups.append((left, depth))
    return total, groups


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two prompts have in common at their start."""
    count = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        count += 1
    return count
