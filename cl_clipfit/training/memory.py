"""A bounded random sample of what a method was given, for methods that use old images."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Rows = dict[str, Tensor]


class Memory:
    """Holds at most `size` samples: a uniform draw of all that were given, or one of each class.

    Every sample gets a random key, and those with the largest keys stay. That is reservoir sampling
    (Vitter 1985) for samples that come in any number of pieces, and by class it is a reservoir of
    equal size for each class, which shrinks as classes arrive.

    Args:
        size: samples.
        by_class: hold equally many of each class, as far as there are so many.
        seed: of the keys and of `draw`.

    Attributes:
        rows: "labels" (N,) and what else was given, each (N, ...), on the CPU.
        keys: (N,).
    """

    def __init__(self, size: int, by_class: bool, seed: int) -> None:
        self.size, self.by_class = size, by_class
        self.draws = torch.Generator().manual_seed(seed % 2**63)
        self.rows: Rows = {}
        self.keys = torch.zeros(0)

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, labels: Tensor, read: Callable[[Tensor], Rows]) -> None:
        """Give samples to the memory.

        Args:
            labels: (n,), on the CPU.
            read: takes the indices (m,) of those that are kept, at least one, and returns their
                other rows.
        """
        before = len(self)
        keys = torch.cat([self.keys, torch.rand(len(labels), generator=self.draws)])
        every = torch.cat([self.rows["labels"], labels]) if self.rows else labels
        kept = self._kept(keys, every)
        new = kept[kept >= before]
        rows = {"labels": every[new], **read(new - before)} if len(new) else {}
        stays = torch.zeros(before, dtype=torch.bool)
        stays[kept[kept < before]] = True
        if self.rows and before - int(stays.sum()) == len(new):  # no other row is moved
            self.keys[~stays] = keys[new]
            for name, values in rows.items():
                self.rows[name][~stays] = values
            return
        self.keys = torch.cat([self.keys[stays], keys[new]])
        old = {name: values[stays] for name, values in self.rows.items()}
        self.rows = {
            name: torch.cat([part[name] for part in (old, rows) if part]) for name in old or rows
        }

    def _kept(self, keys: Tensor, labels: Tensor) -> Tensor:
        """Return the indices of the samples that stay, in order."""
        order = keys.argsort(descending=True, stable=True)
        if not self.by_class:
            return order[: self.size].sort().values
        order = order[labels[order].argsort(stable=True)]  # by class, the largest key first
        _, counts = labels.unique(return_counts=True)
        share, rest = divmod(self.size, len(counts))
        room = torch.full_like(counts, share)
        room[:rest] += 1
        rank = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        return order[rank < room.repeat_interleave(counts)].sort().values

    def draw(self, count: int) -> Rows:
        """Return the rows of `count` samples, or of all if there are fewer, in random order."""
        index = torch.randperm(len(self), generator=self.draws)[:count]
        return {name: values[index] for name, values in self.rows.items()}

    def state(self) -> Rows:
        """Return what it holds; the state of `draws` belongs to that of the RNG."""
        return {**self.rows, "keys": self.keys}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        rows = {name: values.cpu() for name, values in state.items()}
        self.keys = rows.pop("keys")
        self.rows = rows
