"""SIGINT and SIGTERM end a command gracefully; a second signal ends it immediately.

A training step in progress is completed, and a checkpoint is written after it. Nothing else can be
lost: files are written atomically, and the completed part of a run is in its checkpoints.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal ended the command; not an `Exception`, so that a strategy's code does not catch it.

    Attributes:
        exit_code: 128 plus the signal's number.
        advice: how to resume.
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
    """Raise `Stopped` on SIGINT and SIGTERM in a `with` block, immediately or after a step."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    _State.owner, _State.pending, _State.deferring = os.getpid(), None, False
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        _State.pending = None
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(number: int, frame: Any) -> None:
    if os.getpid() != _State.owner:  # a worker process; its parent ends it
        if number == signal.SIGTERM:
            os._exit(128 + number)
        return
    if _State.deferring and _State.pending is None:
        _State.pending = number
        return
    raise Stopped(number)


def in_worker(number: int) -> None:
    """Let a worker process ignore a signal to its process group, until its parent ends it.

    The training step in progress needs its batch. Errors are sent with their messages. Use it as
    the `worker_init_fn` of a PyTorch `DataLoader`.

    Args:
        number: index of the worker.
    """
    from cl_clipfit.runtime.workers import send_errors_whole  # imports PyTorch

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    send_errors_whole()


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Defer signals in a `with` block to the next `check`, or to the end of the block."""
    outer, _State.deferring = _State.deferring, True
    try:
        yield
    finally:
        _State.deferring = outer
    if not outer:
        check()


def pending() -> bool:
    """Return whether a deferred signal is pending."""
    return _State.pending is not None


def request() -> None:
    """Act as if SIGTERM had come and was deferred, unless a signal has."""
    if _State.pending is None:
        _State.pending = signal.SIGTERM


def check() -> None:
    """Raise `Stopped` if a deferred signal is pending."""
    if _State.pending is not None:
        raise Stopped(_State.pending)
