"""What an engine is: it works through jobs somewhere, and reports what happens to them."""

import contextlib
import importlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from cl_clipfit.errors import UserError
from cl_clipfit.sweep.job import Job, Outcome

Report = Callable[[str], None]  # receives a short text on how far a run is
Work = Callable[[Job, Report], Outcome]  # does one run; importable by name in another process
_BYTES_PER_WORKER = 3 << 30  # PyTorch, a CLIP of the usual size and its data


@dataclass(frozen=True)
class Event:
    """What happened to a run.

    Attributes:
        job: the run.
        kind: it was "started", made "progress", or "ended".
        text: where it runs, or how far it is.
        outcome: of a run that ended.
    """

    job: Job
    kind: Literal["started", "progress", "ended"]
    text: str = ""
    outcome: Outcome | None = None


class Engine(Protocol):
    """Works through jobs."""

    def events(self, jobs: Sequence[Job], work: Work) -> Iterator[Event]:
        """Yield what happens until every job has ended; closing the iterator stops all of them."""
        ...


@dataclass(frozen=True)
class Share:
    """What each run gets of a machine.

    Attributes:
        workers: runs at a time on this machine; None: as many as fit.
        threads: cores per run; None: the machine's, shared by the workers.
        gpus: GPUs per run, a fraction if several runs share one; None: 1 where there are any.
    """

    workers: int | None = None
    threads: int | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.gpus is not None and not (0 <= self.gpus <= 1 or self.gpus == int(self.gpus)):
            raise UserError(f"--gpus {self.gpus:g}: expected a share of a GPU, or a whole number")


@dataclass(frozen=True)
class Slot:
    """A place for one run at a time on this machine.

    Attributes:
        threads: cores that it may use.
        gpus: the GPUs that it sees, as in CUDA_VISIBLE_DEVICES; None: it is not asked to look.
    """

    threads: int
    gpus: str | None = None


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_out(share: Share, jobs: int, gpus: Sequence[str], on_gpu: bool) -> list[Slot]:
    """Divide this machine into slots, as many as there are jobs at most.

    Args:
        share: what each run gets.
        jobs: number of runs.
        gpus: this machine's GPUs, as CUDA_VISIBLE_DEVICES names them.
        on_gpu: whether the runs may use one.

    Raises:
        UserError: a run is to get more GPUs than there are.

    Example:
        >>> share_out(Share(workers=3, threads=1, gpus=0.5), 9, ["0", "1"], on_gpu=True)
        [Slot(threads=1, gpus='0'), Slot(threads=1, gpus='1'), Slot(threads=1, gpus='0')]
        >>> share_out(Share(workers=2, threads=4), 9, [], on_gpu=True)
        [Slot(threads=4, gpus=None), Slot(threads=4, gpus=None)]
    """
    each = share.gpus if share.gpus is not None else float(bool(gpus))
    if not (on_gpu and each):
        count = share.workers or min(cores(), max(1, _memory() // _BYTES_PER_WORKER))
        devices: list[str | None] = [None if on_gpu and not gpus else ""] * count
    elif each > len(gpus):
        raise UserError(f"--gpus {each:g}: this machine has {len(gpus) or 'none'}")
    elif each >= 1:
        size = int(each)
        groups = [gpus[at : at + size] for at in range(0, len(gpus) - size + 1, size)]
        devices = [",".join(group) for group in groups]
    else:
        devices = [*gpus] * math.floor(1 / each)
    if share.workers is not None:
        devices = [devices[at % len(devices)] for at in range(share.workers)]
    devices = devices[: max(1, jobs)]
    threads = share.threads or max(1, cores() // len(devices))
    return [Slot(threads, device) for device in devices]


def thread_variables(threads: int) -> dict[str, str]:
    """Return what the environment says of cores; it is read when PyTorch is imported."""
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))


@contextlib.contextmanager
def environment(threads: int) -> Iterator[None]:
    """Let processes that are started in a `with` block use so many cores."""
    variables = thread_variables(threads)
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def needed(name: str, extra: str) -> Any:
    """Import a library that one of the extras installs.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != name:
            raise
        raise UserError(
            f"{name} is not installed: pip install 'cl_clipfit[{extra}]', or {name} itself"
        ) from error


def visible_gpus() -> list[str]:
    """Return this machine's GPUs, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()  # does not start CUDA
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if named else [str(number) for number in range(count)]


def _memory() -> int:
    """Return the memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
