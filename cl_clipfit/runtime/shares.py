"""The work of several processes that train one model: each encodes a share of images and prompts.

Every process draws the same batch, encodes its share of it, and gathers the features of all, with
gradients. What follows is computed by each on the whole batch: any loss is that of one process, be
it a mean over the batch, a contrast within it, or a distance of weights. The backward pass of a
gathered row multiplies its gradient by the number of processes, so that the mean of all processes'
gradients is the gradient: terms that all have count once, a row counts where it was encoded.

Each function here does nothing for a single process. Outside of `dividing`, training code runs in
every process alike, and evaluation divides images by `in_shared_batches`.
"""

import contextlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from cl_clipfit.runtime import processes
from cl_clipfit.runtime.out_of_memory import fits, in_batches, out_of_memory

TOGETHER = 256  # images that stay together if many are divided: features of other batches round
_WHOLE = slice(None)


class _Step:
    dividing = False  # whether encoders take shares, in the passes of a step
    told = False  # whether all processes know that memory ran out


@contextlib.contextmanager
def dividing(divisible: bool = True) -> Iterator[None]:
    """Let encoders take shares of what every process gives them, in a `with` block.

    Args:
        divisible: False for encoders whose output depends on the other rows, or on chance.
    """
    before, _Step.dividing = _Step.dividing, divisible
    try:
        yield
    finally:
        _Step.dividing = before


def shares(count: int, batch: int = 1) -> list[slice]:
    """Return the rows of every process: consecutive, and the first have one more.

    Args:
        count: of rows.
        batch: rows that are encoded at once: if there are many batches, none is divided.

    Example:
        >>> shares(5)
        [slice(0, 5, None)]
    """
    pieces = -(-count // batch)
    if pieces < 4 * processes.world():
        pieces, batch = count, 1
    small, more = divmod(pieces, processes.world())
    ends = [0]
    for number in range(processes.world()):
        ends.append(min(count, ends[-1] + batch * (small + (number < more))))
    return [slice(a, b) for a, b in pairwise(ends)]


def share(count: int, batch: int = 1) -> slice:
    """Return the rows of this process; all of them if it is alone, or if some would have none."""
    if not processes.together() or count < processes.world():
        return _WHOLE
    return shares(count, batch)[processes.rank()]


def own_rows(count: int, least: int = 1) -> slice:
    """Return the rows that an encoder encodes here: its share in `dividing`, else all.

    Args:
        count: of rows.
        least: rows for each process; with fewer, nothing is divided.
    """
    return share(count) if _Step.dividing and count >= least * processes.world() else _WHOLE


def divided(encode: Callable[[slice], Tensor], count: int, least: int = 1) -> Tensor:
    """Encode this process's share in `dividing`, and gather all with gradients; else encode all.

    If memory runs out in any process, it does so in all.

    Args:
        encode: returns a row for each of the rows given by a slice.
        count: of rows.
        least: as in `own_rows`.
    """
    mine = own_rows(count, least)
    if mine == _WHOLE:
        return encode(mine)
    rows = None
    try:
        rows = encode(mine)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    _tell(lacking=rows is None)
    assert rows is not None
    return gathered(rows, count)


def gathered(rows: Tensor, count: int, batch: int = 1) -> Tensor:
    """Return the rows of all processes in order, (count, ...), with gradients.

    Args:
        rows: those of `share(count, batch)`.
        count: of all rows.
        batch: as in `share`.
    """
    if share(count, batch) == _WHOLE:
        return rows
    if rows.requires_grad:
        gathered_rows: Tensor = _Gather.apply(rows, count, batch)
        return gathered_rows
    return _gather(rows, count, batch)


class _Gather(torch.autograd.Function):
    """Gather rows; the gradient of a row is that of one process, times their number."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, count: int, batch: int) -> Tensor:
        """Return all rows."""
        ctx.mine = share(count, batch)
        return _gather(rows, count, batch)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of this process's rows."""
        return gradients[0][ctx.mine] * processes.world(), None, None


def _gather(rows: Tensor, count: int, batch: int) -> Tensor:
    counts = [mine.stop - mine.start for mine in shares(count, batch)]
    if rows[:1].numel() == 0:
        return rows.new_empty((count, *rows.shape[1:]))
    padded = rows.detach().new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows.detach()
    flat = padded.view(-1).view(torch.uint8)  # any type, bit for bit
    parts = processes.all_gathered(flat)
    whole = (part.view(rows.dtype).view_as(padded) for part in parts)
    return torch.cat([part[:n] for part, n in zip(whole, counts, strict=True)])


def in_shared_batches(
    function: Callable[..., Tensor], images: Any, device: torch.device, size: int,
    *tensors: Tensor, progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, int]:  # fmt: skip
    """Apply a function as `in_batches` does, in each process to its share, and gather the results.

    Returns:
        the results for all images, (N, ...), and the number of images at a time here at the end.
    """
    count = len(images)
    if (mine := share(count, TOGETHER)) != _WHOLE:
        images, tensors = images[mine], tuple(tensor[mine] for tensor in tensors)
    with processes.alone():
        rows, size = in_batches(function, images, device, size, *tensors, progress=progress)
    return gathered(rows, count, TOGETHER), size


def fit_everywhere(work: Callable[[], Any], divisible: bool = True) -> bool:
    """Call `work`, whose encoders take shares; return False if memory ran out in any process.

    Args:
        work: the passes of a step; see `out_of_memory.fits`.
        divisible: as in `dividing`.
    """
    if not processes.together():
        return fits(work)
    _Step.told = False
    with dividing(divisible):
        done = fits(work)
    if _Step.told:
        return False
    with contextlib.suppress(torch.OutOfMemoryError):
        _tell(lacking=not done)
    return not _Step.told


def _tell(lacking: bool) -> None:
    """Tell all processes whether memory ran out here.

    Raises:
        torch.OutOfMemoryError: it did in one of them.
    """
    if processes.tell(lacking):
        _Step.told = True
        raise torch.OutOfMemoryError("out of memory in one of the processes")
