"""Prompts without padding, with shared prefixes encoded once.

With causal attention, the features of a token depend only on the tokens before it. A shared prefix
of prompts is therefore encoded once, and tokens after the end token not at all: the prompts form a
tree of tokens, in which each token attends along its branch.
"""

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Approximate rows per bundle: more rows make attention more expensive; fewer rows give more
# bundles, in which the prefix shared by all prompts is repeated more often.
_ROWS = 96


@dataclass(frozen=True)
class Packed:
    """Prompts as trees of tokens, in B bundles of S rows each.

    Attributes:
        ids: (B S,), token ids.
        positions: (B S,), position of each token in its prompts.
        hidden: (B, 1, S, S), True where a token must not attend: it attends to itself and the
            tokens before it in its prompts.
        last: (P,), the row of each prompt's end token.
    """

    ids: Tensor
    positions: Tensor
    hidden: Tensor
    last: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "Packed":
        """Copy all tensors to a device asynchronously."""
        return Packed(**{name: to_device(value, device) for name, value in vars(self).items()})


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to a device asynchronously."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def pack(prompts: Sequence[Sequence[int]], limit: int) -> tuple[list[Packed], Tensor]:
    """Pack prompts, each a sequence of token ids up to its end token.

    Args:
        prompts: token ids.
        limit: of rows per part; a longer prompt forms its own part.

    Returns:
        the parts, and the index of each prompt among the prompts of all parts, (P,).

    Example:
        >>> (packed,), order = pack([[1, 5, 6, 7, 2], [1, 5, 6, 8, 9, 2]], limit=100)
        >>> packed.ids.tolist(), packed.positions.tolist(), packed.last.tolist()
        ([1, 5, 6, 7, 2, 8, 9, 2], [0, 1, 2, 3, 4, 3, 4, 5], [4, 7])
    """
    order = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))
    in_order = [prompts[i] for i in order]
    edges = _edges(in_order, min(limit, _ROWS))
    trees = [_Tree(in_order[start:end]) for start, end in itertools.pairwise(edges)]
    room = max(len(tree.ids) for tree in trees)
    at_once = max(1, limit // room)
    parts = [_join(trees[i : i + at_once], room) for i in range(0, len(trees), at_once)]
    return parts, torch.tensor(order).argsort()


class _Tree:
    """Tokens of sorted prompts, each in one row below the token before it.

    Attributes:
        ids: token ids.
        depths: how many tokens come before each.
        parents: the row before each; -1 at a root.
        ends: the row of each prompt's last token.
    """

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self.ids: list[int] = []
        self.depths: list[int] = []
        self.parents: list[int] = []
        self.ends: list[int] = []
        branch: list[int] = []
        before: Sequence[int] = ()
        for prompt in prompts:
            del branch[_shared(before, prompt) :]
            for token in prompt[len(branch) :]:
                self.parents.append(branch[-1] if branch else -1)
                self.depths.append(len(branch))
                branch.append(len(self.ids))
                self.ids.append(token)
            self.ends.append(branch[-1])
            before = prompt

    def hidden(self, room: int) -> Any:
        """Return (room, room), False where a row attends to another; a padding row sees itself.

        Thus no row of the softmax is empty.
        """
        hidden = np.ones((room, room), dtype=bool)
        for row, parent in enumerate(self.parents):
            if parent >= 0:
                hidden[row] = hidden[parent]
            hidden[row, row] = False
        np.fill_diagonal(hidden, False)
        return hidden


def _join(trees: Sequence[_Tree], room: int) -> Packed:
    """Put each tree into `room` rows, padded with its first token."""
    ids, positions, last = [], [], []
    for number, tree in enumerate(trees):
        spare = room - len(tree.ids)
        ids += tree.ids + tree.ids[:1] * spare
        positions += tree.depths + [0] * spare
        last += [number * room + end for end in tree.ends]
    hidden = torch.from_numpy(np.stack([tree.hidden(room) for tree in trees]))
    return Packed(torch.tensor(ids), torch.tensor(positions), hidden[:, None], torch.tensor(last))


def _edges(prompts: Sequence[Sequence[int]], rows: int) -> list[int]:
    """Divide sorted prompts into runs whose trees have about the same number of rows.

    Args:
        prompts: token ids.
        rows: at most this many per tree, or the length of the longest prompt if that is more.

    Returns:
        the start of each run, and the number of prompts.
    """
    lengths = [len(prompt) for prompt in prompts]
    shared = [0, *(_shared(a, b) for a, b in itertools.pairwise(prompts))]
    longest = max(lengths)
    rooms = range(longest, max(longest, rows) + 1)
    fewest = len(_fill(lengths, shared, rooms[-1]))
    # The smallest room that needs no more runs, so that no run is nearly empty.
    least = bisect.bisect_left(rooms, -fewest, key=lambda room: -len(_fill(lengths, shared, room)))
    return [*_fill(lengths, shared, rooms[least]), len(prompts)]


def _fill(lengths: Sequence[int], shared: Sequence[int], room: int) -> list[int]:
    """Return the starts of runs that fill a room greedily."""
    starts: list[int] = []
    used = 0
    for i, (length, common) in enumerate(zip(lengths, shared, strict=True)):
        if not starts or used + length - common > room:
            starts.append(i)
            used = length
        else:
            used += length - common
    return starts


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common prefix of two prompts."""
    count = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        count += 1
    return count
