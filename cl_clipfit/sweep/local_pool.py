"""Runs on this machine: a pool of processes, each with its share of the cores and its GPU.

Every slot is a `ProcessPoolExecutor` of one worker, so that a worker that dies takes no other run
with it. A worker imports nothing heavy before it knows its cores, because OpenMP reads their number
when PyTorch is imported.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Any

from cl_clipfit.sweep.engines import Event, Slot, Work, thread_variables
from cl_clipfit.sweep.job import Job, Outcome

DIED = "its worker process died: killed, or out of memory; the same command resumes it"
_LOOK_SECONDS = 0.2
_END_SECONDS = 120.0  # for a run to complete its step and write its checkpoint


class LocalPool:
    """Works through jobs in processes of this machine.

    Args:
        slots: a place for each worker.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = slots

    def events(self, jobs: Sequence[Job], work: Work) -> Iterator[Event]:
        """Yield what happens until every job has ended; closing the iterator stops all of them."""
        waiting = [*reversed(jobs)]
        workers = [_Worker(slot) for slot in self.slots[: len(jobs)]]
        try:
            while waiting or any(worker.job for worker in workers):
                for worker in workers:
                    if worker.job is None and waiting:
                        yield worker.start(waiting.pop(), work)
                wait([w.future for w in workers if w.future], _LOOK_SECONDS, FIRST_COMPLETED)
                for worker in workers:
                    yield from worker.look()
        except BaseException:
            for worker in workers:
                worker.stop()
            raise
        finally:
            _end(workers)


@dataclass
class _Worker:
    """A worker process and what it does at the moment."""

    slot: Slot
    pool: ProcessPoolExecutor | None = None
    messages: Connection | None = None
    job: Job | None = None
    future: "Future[Outcome] | None" = None
    pid: int | None = None
    started: float = 0.0

    def start(self, job: Job, work: Work) -> Event:
        """Give the worker a run."""
        if self.pool is None:
            context = multiprocessing.get_context("spawn")  # a fork of PyTorch's threads hangs
            self.messages, sending = context.Pipe(duplex=False)
            self.pool = ProcessPoolExecutor(
                1, context, initializer=_begin, initargs=(self.slot, sending)
            )
        self.job, self.started = job, time.monotonic()
        self.future = self.pool.submit(_work, work, replace(job, threads=self.slot.threads))
        where = "" if not self.slot.gpus else f"GPU {self.slot.gpus}"
        return Event(job, "started", where)

    def look(self) -> Iterator[Event]:
        """Yield what happened since the last look."""
        if self.job is None or self.future is None:
            return
        job, ended = self.job, self.future.done()
        with contextlib.suppress(EOFError, OSError):  # the worker died in the middle of a message
            while self.messages is not None and self.messages.poll():
                message = self.messages.recv()
                if isinstance(message, int):
                    self.pid = message
                else:
                    yield Event(job, "progress", message)
        if not ended:
            return
        future, self.job, self.future = self.future, None, None
        try:
            outcome = future.result()
        except BrokenProcessPool:
            self.close()
            outcome = Outcome("failed", text=DIED, seconds=time.monotonic() - self.started)
        except Exception as error:  # it could not be sent, for example
            outcome = Outcome("failed", text=f"{type(error).__name__}: {error}")
        yield Event(job, "ended", outcome=outcome)

    def stop(self) -> None:
        """Ask the worker to complete its step, to write a checkpoint and to end."""
        list(self.look())  # its process ID
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def close(self) -> None:
        """Let the worker's process end once it is idle."""
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)
        if self.messages is not None:
            self.messages.close()
        self.pool = self.messages = self.pid = None


def _end(workers: Sequence[_Worker]) -> None:
    """Wait for what the workers do at the moment, and end them; a second signal does not wait."""
    try:
        wait([w.future for w in workers if w.future], _END_SECONDS)
    finally:
        for worker in workers:
            if worker.future is not None and not worker.future.done() and worker.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
            worker.close()


# ---- in the worker -------------------------------------------------------------------------------

_sending: Connection | None = None


def _begin(slot: Slot, sending: Connection) -> None:
    """Prepare a worker process, before anything heavy is imported."""
    global _sending
    _sending = sending
    os.setsid()  # Ctrl-C reaches the parent alone, which lets the workers complete their steps
    os.environ.update(thread_variables(slot.threads))
    if slot.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot.gpus
    threading.Thread(target=_follow_parent, daemon=True).start()
    sending.send(os.getpid())


def _follow_parent() -> None:
    """End this process once its parent has ended, in whatever way."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_END_SECONDS)
    os._exit(1)


def _work(work: Any, job: Job) -> Outcome:
    def report(text: str) -> None:
        if _sending is not None:
            with contextlib.suppress(OSError):  # the parent has ended
                _sending.send(text)

    outcome: Outcome = work(job, report)
    if (parent := multiprocessing.parent_process()) is not None and not parent.is_alive():
        os._exit(1)
    return outcome
