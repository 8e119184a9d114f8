"""Read the image files of a batch in several processes, each its share."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from cl_clipfit.runtime.shares import gathered, share


class _OwnRows:
    """The indices that this process reads, of batches that all draw alike."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches
        self.counts: list[int] = []  # of the batches drawn so far

    def __iter__(self) -> Iterator[list[int]]:
        self.counts.clear()
        for batch in self.batches:
            self.counts.append(len(batch))
            yield batch[share(len(batch))]

    def __len__(self) -> int:
        return len(self.batches)


class SharedReading:
    """A loader of whole batches; each process reads its share of a batch and gets the rest.

    To decode a batch takes longer than to exchange it. The batches, and the random numbers drawn
    for them, are those of the loader.

    Args:
        loader: a loader with worker processes; its batches are lists of tensors.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader, self.rows = loader, _OwnRows(loader.batch_sampler)
        names = (
            "num_workers", "collate_fn", "pin_memory", "worker_init_fn", "persistent_workers",
            "prefetch_factor", "generator",
        )  # fmt: skip
        arguments = {name: getattr(loader, name) for name in names}
        self.own: DataLoader[Any] = DataLoader(loader.dataset, batch_sampler=self.rows, **arguments)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Tensor]]:
        for number, parts in enumerate(self.own):
            count = self.rows.counts[number]
            yield [gathered(part.contiguous(), count) for part in parts]
