"""Several processes that work on one run: how they find each other, and what they exchange.

How they divide the work is in `shares`. Each function here does nothing for a single process.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cl_clipfit.errors import UserError
from cl_clipfit.runtime import launch, signals
from cl_clipfit.runtime.device import own_gpu

T = TypeVar("T")
_PATIENCE = timedelta(hours=2)  # the first process may have to download data


class _State:
    group: Any = None
    rank, world = 0, 1
    alone = 0  # depth of blocks in which this process works on its own
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


def all_gathered(flat: Tensor) -> list[Tensor]:
    """Return tensors of equal shape from every process, in order."""
    parts = [torch.empty_like(flat) for _ in range(_State.world)]
    _exchange(lambda: dist.all_gather(parts, flat, group=_State.group), flat)
    return parts


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


def tell(lacking: bool) -> bool:
    """Tell all processes whether memory ran out here and whether a signal came.

    Returns:
        whether memory ran out in any of them.
    """
    flags = torch.tensor([lacking, signals.pending()], dtype=torch.uint8)
    _exchange(lambda: dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=_State.group), flags)
    _State.stopping = _State.stopping or bool(flags[1])
    return bool(flags[0])


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
