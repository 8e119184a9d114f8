"""Which state of a run is saved when, and how a run goes on from it, bit for bit.

A task is gone through again from its start, as far as it prepares things, but epochs that were
finished are left out: their outcome is put in their place. Of an epoch that a signal stopped, the
batches of the steps that were finished are drawn again, as they were, and left out.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from cl_clipfit.checkpoints import Checkpoints
from cl_clipfit.errors import UserError
from cl_clipfit.files import sha256
from cl_clipfit.snapshots import Snapshot, copied, draws_of, put, set_draws, take

_STATE = (
    ("stream", (str,)), ("tasks", (int,)), ("seconds", (float,)), ("start", (dict,)),
    ("ends", (dict,)), ("at", (dict, type(None))), ("progress", (dict, type(None))),
)  # fmt: skip


def stream_hash(task_classes: list[list[int]]) -> str:
    """Return what tells streams apart: a thousand tasks need not stand in every checkpoint."""
    return sha256(repr([list(classes) for classes in task_classes]).encode())


def batch_hash(images: Tensor, labels: Tensor) -> str:
    """Return what tells a batch from others, of images (B, ...) and labels (B,)."""
    parts = (images, labels)
    return sha256(b"".join(p.cpu().reshape(-1).view(torch.uint8).numpy().tobytes() for p in parts))


class Journal:
    """Saves a run after every epoch, and leaves out what an earlier process finished.

    Args:
        checkpoints: of the run folder.
        strategy: the method; its `journal` is set to this.
        stream: the classes of every task.
    """

    def __init__(self, checkpoints: Checkpoints, strategy: Any, stream: list[list[int]]) -> None:
        self.checkpoints, self.strategy = checkpoints, strategy
        self.stream = stream_hash(stream)
        self.repeats_batches = True  # False where a run goes on with other settings
        self._loop = 0  # of epochs, within the task
        self._epoch, self._step = 0, 0  # finished ones of the loop, and of the epoch under way
        self._epoch_draws: dict[str, Any] = {}  # before the epoch under way
        self._state: dict[str, Any] = {}
        self._resumed: dict[str, Any] | None = None
        self._within: dict[str, Any] | None = None  # an epoch that a signal stopped
        self._started = 0.0
        self.earlier_seconds = 0.0  # of the task, in processes before this one
        strategy.journal = self

    def load(self) -> dict[str, Any] | None:
        """Return what was saved with the last state, and go on from there; None at the start."""
        found = self.checkpoints.load()
        if found is not None and any(type(found.get(key)) not in kinds for key, kinds in _STATE):
            raise UserError(
                f"{self.checkpoints.folder}: not what a run writes: begin again with --fresh"
            )
        self._resumed = found
        return self._resumed

    def begin_task(self, tasks: int, progress: Any) -> None:
        """Save, or put back, the state before a task.

        Args:
            tasks: that are finished.
            progress: what the run found out so far.
        """
        self._loop, self._started = 0, time.perf_counter()
        if self._resumed is not None and self._resumed["tasks"] == tasks:
            self._state, self.earlier_seconds = self._resumed, self._resumed["seconds"]
            put(self.strategy, self._state["start"])
            return
        self._resumed, self.earlier_seconds = None, 0.0  # what loads a task has no loop to enter
        self._state = {
            "stream": self.stream, "tasks": tasks, "progress": copied(progress), "seconds": 0.0,
            "start": take(self.strategy), "ends": {}, "at": None,
        }  # fmt: skip
        self._save()

    def enter(self, epochs: int) -> int:
        """Begin a loop of epochs; return how many of them are left out.

        Args:
            epochs: of the loop.
        """
        loop, self._loop, self._epoch = self._loop, self._loop + 1, 0
        at = self._resumed and self._resumed["at"]
        if not at or loop > at["loop"]:
            self._resumed = None
            return 0
        if loop in self._state["ends"]:
            put(self.strategy, self._state["ends"][loop])
        if loop < at["loop"]:
            return epochs
        put(self.strategy, at["snapshot"])
        self._resumed = None
        self._within = at if at["steps"] else None
        self._epoch = at["epoch"]
        return self._epoch

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches of an epoch, but for those that an earlier process learned from.

        Args:
            loader: of the epoch's batches: images, labels, ...

        Raises:
            UserError: it draws other batches than before, though the settings are the same.
        """
        left_out, self._within = self._within, None
        if left_out:
            set_draws(self.strategy, left_out["draws"])
        self._epoch_draws, self._step = draws_of(self.strategy), 0
        for batch in loader:
            self._step += 1
            if not left_out or self._step > left_out["steps"]:
                yield batch
            elif self._step == left_out["steps"]:
                self._check_batch(batch, left_out["batch"])
                set_draws(self.strategy, left_out["snapshot"]["draws"])

    def _check_batch(self, batch: Any, wanted: str) -> None:
        if self.repeats_batches and batch_hash(batch[0], batch[1]) != wanted:
            newest = self.checkpoints.newest()
            raise UserError(
                f"{self.checkpoints.folder.parent}: an epoch's batches are not drawn as before:"
                f" remove {newest}, which is of the midst of an epoch, and repeat the command"
            )

    def step_done(self, images: Tensor, labels: Tensor) -> None:
        """Save the state after a step, in the midst of an epoch.

        Args:
            images: (B, ...) of the step, as the loader gave them.
            labels: (B,).
        """
        self._save_at(
            take(self.strategy, optimizer=True), self._step, draws=self._epoch_draws,
            batch=batch_hash(images, labels),
        )  # fmt: skip

    def epoch_done(self, epoch: int, epochs: int, piece: bool) -> None:
        """Save the state after an epoch.

        Args:
            epoch: counted from 1.
            epochs: of the loop.
            piece: the loop is over a piece of a task's images: of earlier ones nothing is needed.
        """
        loop, self._epoch = self._loop - 1, epoch
        snapshot = take(self.strategy, optimizer=True)
        if epoch == epochs:
            ends = {} if piece else self._state["ends"]
            self._state["ends"] = {**ends, loop: _without_optimizer(snapshot)}
        self._save_at(snapshot)

    def _save_at(self, snapshot: Snapshot, steps: int = 0, **more: Any) -> None:
        seconds = time.perf_counter() - self._started
        self._state["seconds"] = self.earlier_seconds + seconds
        self._state["at"] = {
            "loop": self._loop - 1, "epoch": self._epoch, "steps": steps, "snapshot": snapshot,
            **more,
        }  # fmt: skip
        self._save()

    def _save(self) -> None:
        folder = self.checkpoints.folder.parent
        if not folder.is_dir():
            raise UserError(f"{folder} has vanished during the run: repeat the command")
        self.checkpoints.save(self._state)


def _without_optimizer(snapshot: Snapshot) -> Snapshot:
    return {k: v for k, v in snapshot.items() if k not in ("optimizer", "scheduler")}
