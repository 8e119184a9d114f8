"""Where this process stands among those that torchrun started; imports no PyTorch.

Only training runs on several processes. The first one writes and prints; every error is shown once.
"""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cl_clipfit.errors import UserError

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_MEANWHILE = 1.0  # seconds in which a process that fails prints why


class LostError(UserError):
    """Another process of the run has ended."""


@dataclass(frozen=True)
class Place:
    """A process among several.

    Attributes:
        rank: its number, from 0.
        world: the number of processes.
        local: its number on its machine, from 0.
        here: the number of processes on its machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    here: int = 1


def declared() -> Place:
    """Return the place that torchrun declares in the environment; alone without torchrun.

    Raises:
        UserError: the environment contradicts itself.
    """
    given = [os.environ.get(name, "") for name in _NAMES]
    if not all(given):  # a scheduler may set some of these names for purposes of its own
        return Place()
    try:
        rank, world, local = (int(text) for text in given[:3])
        here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    except ValueError:
        rank, world, local, here = -1, 0, 0, 1
    if not (0 <= rank < world and 0 <= local < here):
        shown = ", ".join(f"{name}={text}" for name, text in zip(_NAMES, given, strict=True))
        raise UserError(f"the environment names no process of a group ({shown}): use torchrun")
    return Place(rank, world, local, here)


def restarted() -> bool:
    """Return whether torchrun started this process in place of one that ended."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


class _State:
    place = Place()  # within `runtime.processes.joined`
    reports: Callable[[], bool] | None = None


def enter(place: Place, reports: Callable[[], bool] | None = None) -> None:
    """Take a place, in which this process works from now on.

    Args:
        place: the place.
        reports: returns True to the process that calls it first.
    """
    _State.place = place
    _State.reports = reports or _State.reports


def place() -> Place:
    """Return the place that this process has taken; alone before `runtime.processes.joined`."""
    return _State.place


def writes() -> bool:
    """Return whether this process is the one that writes files and shows progress."""
    return _State.place.rank == 0


def reports(lost: bool = False) -> bool:
    """Return whether this process is to print its error: the first that has one, or the first.

    Args:
        lost: whether the error is that another process has ended, which may be about to say why.
    """
    if lost:
        time.sleep(_MEANWHILE)
    if _State.reports is not None:
        with contextlib.suppress(Exception):  # the store may be gone, with the first process
            return _State.reports()
    try:
        if first := declared().rank == 0:
            return first
    except UserError:
        return True
    time.sleep(_MEANWHILE)  # torchrun ends the first process, before it has spoken, once one ends
    return False


def refuse_several(words: Sequence[str], commands: Sequence[str]) -> None:
    """Refuse a command that one process executes.

    Args:
        words: of the command line.
        commands: names of all commands but training.

    Raises:
        UserError: there are several processes.
    """
    if declared().world == 1:
        return
    # Before PyTorch is imported: it logs every connection that a process which ended has left.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if words and words[0] in commands:
        raise UserError(f"{words[0]}: a single process executes it: start it without torchrun")
