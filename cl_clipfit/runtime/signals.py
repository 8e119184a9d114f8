"""SIGINT and SIGTERM end a command in good order; a second one ends it at once.

A step under way is finished, and a checkpoint written after it. Elsewhere nothing can be lost:
files appear whole or not at all, and what is finished of a run is in its checkpoints.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal ended the command; not an `Exception`, so that no method's code swallows it.

    Attributes:
        exit_code: 128 and the signal's number.
        advice: how to go on.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code, self.advice = 128 + number, ""


class _State:
    deferring = False
    pending: int | None = None
    owner = 0


@contextlib.contextmanager
def graceful() -> Iterator[None]:
    """Raise `Stopped` on SIGINT and SIGTERM in a `with` block, at once or when a step is done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    _State.owner, _State.pending, _State.deferring = os.getpid(), None, False
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(number: int, frame: Any) -> None:
    if os.getpid() != _State.owner:  # a worker process, which its parent ends
        if number == signal.SIGTERM:
            os._exit(128 + number)
        return
    if _State.deferring and _State.pending is None:
        _State.pending = number
        return
    raise Stopped(number)


def in_worker(number: int) -> None:
    """Let a worker process outlive a signal that its whole group gets, until its parent ends it.

    The step under way needs its batch. Errors are sent whole. To be a `worker_init_fn` of PyTorch's
    loaders.

    Args:
        number: of the worker.
    """
    from cl_clipfit.runtime.workers import send_errors_whole  # with PyTorch

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    send_errors_whole()


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let a signal in a `with` block wait for the next `check`, or for its end."""
    outer, _State.deferring = _State.deferring, True
    try:
        yield
    finally:
        _State.deferring = outer
    if not outer:
        check()


def pending() -> bool:
    """Tell whether a signal came that waits."""
    return _State.pending is not None


def check() -> None:
    """Raise `Stopped` if a signal came that waits."""
    if _State.pending is not None:
        raise Stopped(_State.pending)
