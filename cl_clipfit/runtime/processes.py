"""Several processes that train one model: each encodes a share of the images and prompts.

Every process draws the same batch, encodes its share of it, and gathers the features of all, with
gradients. What follows is computed by each on the whole batch: any loss is that of one process, be
it a mean over the batch, a contrast within it, or a distance of weights. The backward pass of a
gathered row multiplies its gradient by the number of processes, so that the mean of all processes'
gradients is the gradient: terms that all have count once, a row counts where it was encoded.

Each function here does nothing for a single process. Outside of `dividing`, training code runs in
every process alike, and evaluation divides images by `share` and `gathered`.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cl_clipfit.errors import UserError
from cl_clipfit.runtime import launch, signals
from cl_clipfit.runtime.device import own_gpu
from cl_clipfit.runtime.out_of_memory import fits, out_of_memory

T = TypeVar("T")
_PATIENCE = timedelta(hours=2)  # the first process may have to download data
_WHOLE = slice(None)


class _State:
    group: Any = None
    rank, world = 0, 1
    dividing = False  # whether encoders take shares, in the passes of a step
    alone = 0  # depth of blocks in which this process works on its own
    told = False  # whether all processes know that memory ran out
    stopping = False  # whether a signal came to any process
    sent = 0
    groups = 0  # joined so far


def rank() -> int:
    """Return the number of this process, from 0."""
    return _State.rank


def world() -> int:
    """Return the number of processes."""
    return _State.world


def bytes_sent() -> int:
    """Return how many bytes this process has given to others so far, in all exchanges."""
    return _State.sent


@contextlib.contextmanager
def joined(device: str = "cpu") -> Iterator[None]:
    """Work with the other processes that torchrun started, in a `with` block.

    Args:
        device: as of `--device`: on a CPU they talk through Gloo, on GPUs through NCCL too.

    Raises:
        UserError: the others do not come, or there are more processes than GPUs.
    """
    place = launch.declared()
    if place.world == 1 or _State.group is not None:
        yield
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(own_gpu())
    kind = "cpu:gloo,cuda:nccl" if cuda else "cpu:gloo"
    created = not dist.is_initialized()
    try:
        if created:
            store, _, _ = next(dist.rendezvous("env://", timeout=_PATIENCE))
            _State.groups += 1  # in all processes alike
            again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.PrefixStore(f"cl_clipfit/{again}/{_State.groups}", store)
            dist.init_process_group(
                kind, store=store, rank=place.rank, world_size=place.world, timeout=_PATIENCE
            )
            launch.enter(place, lambda: store.add("reported", 1) == 1)
        else:
            launch.enter(place)
        _State.group = dist.group.WORLD if created else dist.new_group(backend=kind)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the {place.world} processes cannot reach each other: {reason}") from error
    _State.rank, _State.world, _State.stopping = place.rank, place.world, False
    try:
        yield
    finally:
        launch.enter(launch.Place())
        _State.group, _State.rank, _State.world = None, 0, 1
        if created:
            with contextlib.suppress(RuntimeError):  # another process has ended
                dist.destroy_process_group()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let this process work without the others in a `with` block."""
    _State.alone += 1
    try:
        yield
    finally:
        _State.alone -= 1


def together() -> bool:
    """Return whether there are other processes, and this one is not in a block of `alone`."""
    return _State.world > 1 and not _State.alone


@contextlib.contextmanager
def dividing(divisible: bool = True) -> Iterator[None]:
    """Let encoders take shares of what every process gives them, in a `with` block.

    Args:
        divisible: False for encoders whose output depends on the other rows, or on chance.
    """
    before, _State.dividing = _State.dividing, divisible
    try:
        yield
    finally:
        _State.dividing = before


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
    if pieces < 4 * _State.world:
        pieces, batch = count, 1
    small, more = divmod(pieces, _State.world)
    ends = [0]
    for number in range(_State.world):
        ends.append(min(count, ends[-1] + batch * (small + (number < more))))
    return [slice(a, b) for a, b in pairwise(ends)]


def share(count: int, batch: int = 1) -> slice:
    """Return the rows of this process; all of them if it is alone, or if some would have none."""
    if not together() or count < _State.world:
        return _WHOLE
    return shares(count, batch)[_State.rank]


def own_rows(count: int, least: int = 1) -> slice:
    """Return the rows that an encoder encodes here: its share in `dividing`, else all.

    Args:
        count: of rows.
        least: rows for each process; with fewer, nothing is divided.
    """
    return share(count) if _State.dividing and count >= least * _State.world else _WHOLE


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
        return gradients[0][ctx.mine] * _State.world, None, None


def _gather(rows: Tensor, count: int, batch: int) -> Tensor:
    counts = [mine.stop - mine.start for mine in shares(count, batch)]
    if rows[:1].numel() == 0:
        return rows.new_empty((count, *rows.shape[1:]))
    padded = rows.detach().new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows.detach()
    flat = padded.view(-1).view(torch.uint8)  # any type, bit for bit
    parts = [torch.empty_like(flat) for _ in counts]
    _exchange(lambda: dist.all_gather(parts, flat, group=_State.group), flat)
    whole = (part.view(rows.dtype).view_as(padded) for part in parts)
    return torch.cat([part[:n] for part, n in zip(whole, counts, strict=True)])


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace gradients by their mean over the processes, in one exchange for each type."""
    if not together():
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for parameter in {id(p): p for p in parameters}.values():
        if (gradient := parameter.grad) is not None:
            kinds.setdefault((gradient.dtype, gradient.device), []).append(gradient)
    for gradients in kinds.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        _add(flat)
        parts = flat.div_(_State.world).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def summed(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the sums of tensors over the processes, each of the shape it has in all."""
    copies = [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors]
    if together():
        for tensor in copies:
            _add(tensor)
    return copies


def _add(tensor: Tensor) -> None:
    _exchange(lambda: dist.all_reduce(tensor, group=_State.group), tensor)


def fit_everywhere(work: Callable[[], Any], divisible: bool = True) -> bool:
    """Call `work`, whose encoders take shares; return False if memory ran out in any process.

    Args:
        work: the passes of a step; see `out_of_memory.fits`.
        divisible: as in `dividing`.
    """
    if not together():
        return fits(work)
    _State.told = False
    with dividing(divisible):
        done = fits(work)
    if _State.told:
        return False
    with contextlib.suppress(torch.OutOfMemoryError):
        _tell(lacking=not done)
    return not _State.told


def _tell(lacking: bool) -> None:
    """Tell all processes whether memory ran out here and whether a signal came.

    Raises:
        torch.OutOfMemoryError: memory ran out in one of them.
    """
    flags = torch.tensor([lacking, signals.pending()], dtype=torch.uint8)
    _exchange(lambda: dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=_State.group), flags)
    _State.stopping = _State.stopping or bool(flags[1])
    if flags[0]:
        _State.told = True
        raise torch.OutOfMemoryError("out of memory in one of the processes")


def stopping() -> bool:
    """Return whether to stop after this step: a signal is pending, here or in another process."""
    if not together():
        return signals.pending()
    if _State.stopping:
        signals.request()
    return _State.stopping


def all_have(condition: bool) -> bool:
    """Return whether a condition is true in every process."""
    if not together():
        return condition
    flag = torch.tensor([condition], dtype=torch.uint8)
    _exchange(lambda: dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=_State.group), flag)
    return bool(flag)


def from_first(function: Callable[[], T]) -> T:
    """Call a function in the first process, and return its result in all."""
    if not together():
        return function()
    box: list[Any] = [function() if _State.rank == 0 else None]
    cpu = torch.device("cpu")
    _exchange(lambda: dist.broadcast_object_list(box, src=0, group=_State.group, device=cpu))
    value: T = box[0]
    return value


@contextlib.contextmanager
def first_on_machine() -> Iterator[None]:
    """Run a `with` block in the first process of each machine, then in the others.

    So data are downloaded once, and read from the cache by the others.
    """
    first = launch.place().local == 0
    if not first:
        all_have(True)
    yield
    if first:
        all_have(True)


def _exchange(work: Callable[[], Any], given: Tensor | None = None) -> None:
    """Exchange something with all processes.

    Raises:
        launch.LostError: another one has ended.
    """
    try:
        work()
    except RuntimeError as error:
        raise launch.LostError(
            f"process {_State.rank} has lost another one of the {_State.world}, whose error may"
            " stand above: what was saved is whole, and the same command resumes it"
            " (torchrun --max-restarts 3 repeats it by itself)"
        ) from error
    _State.sent += given.numel() * given.element_size() if given is not None else 0
