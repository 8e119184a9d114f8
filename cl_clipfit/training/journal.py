"""Save the state of a run, and resume from it, bit for bit.

A resumed task is prepared again, but its finished epochs are skipped, and their outcome is restored
instead. In an epoch that a signal stopped, the batches of finished steps are drawn again, in the
same order, and skipped.
"""

import hashlib
import math
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cl_clipfit.errors import UserError
from cl_clipfit.runtime.code_files import package_hash
from cl_clipfit.runtime.processes import from_first
from cl_clipfit.runtime.rng import rng_state, set_rng_state
from cl_clipfit.storage.checkpoints import Checkpoints, Part
from cl_clipfit.storage.files import sha256
from cl_clipfit.storage.lock import require
from cl_clipfit.training.snapshot import Snapshot, copied, put, put_counters, take

if TYPE_CHECKING:
    from cl_clipfit.training.history import HistoryPlugin
    from cl_clipfit.training.strategy import CLIPStrategy

_STATE = (
    ("stream", (str,)), ("digest", (str,)), ("tasks", (int,)), ("seconds", (float,)),
    ("start", (Part,)), ("ends", (dict,)), ("at", (dict, type(None))),
    ("progress", (dict, type(None))), ("code", (str, type(None))),
)  # fmt: skip
_AT = (
    ("loop", (int,)), ("epoch", (int,)), ("steps", (int,)), ("snapshot", (dict,)),
    ("rng", (dict,)), ("batches", (str,)),
)  # fmt: skip


def _is_state(saved: Snapshot) -> bool:
    """Return whether a checkpoint, which may be untrusted, has the form that a journal saves."""
    if any(type(saved.get(key)) not in kinds for key, kinds in _STATE):
        return False
    if not _is_history(saved.get("history")):
        return False
    at, counts = saved["at"], [saved["tasks"]]
    if at is not None:
        if any(type(at.get(key)) not in kinds for key, kinds in _AT):
            return False
        counts += [at["loop"], at["epoch"], at["steps"]]
    return min(counts) >= 0 and math.isfinite(saved["seconds"])


def _is_history(saved: Any) -> bool:
    """Return whether this is what `HistoryPlugin.state` returns; None if nothing recorded any."""
    if saved is None:
        return True
    try:
        counts = saved["bytes"], saved["before"]
        fits = [total.shape == (len(names) + 1,) for names, total in saved["sums"]]
    except (LookupError, TypeError, ValueError, AttributeError):
        return False
    whole = all(type(count) is int and count >= 0 for count in counts)
    return whole and all(fits) and type(saved.get("rate")) is float


def stream_hash(task_classes: list[list[int]]) -> str:
    """Return a hash that identifies a stream; it is short even for a thousand tasks."""
    return sha256(repr([list(classes) for classes in task_classes]).encode())


def place(saved: Snapshot) -> str:
    """Return where a saved run resumes, such as "in task 2, after epoch 3"."""
    at, task = saved["at"], saved["tasks"] + 1
    if not at:
        return f"with task {task}"
    stage = "" if at["loop"] == 0 else f" of stage {at['loop'] + 1}"
    if at["steps"]:
        return f"in task {task}, after step {at['steps']} of epoch {at['epoch'] + 1}{stage}"
    return f"in task {task}, after epoch {at['epoch']}{stage}"


class Journal:
    """Saves a run after every epoch, and skips what an earlier process finished.

    Args:
        checkpoints: of the run folder.
        strategy: the method; its `journal` is set to this object.
        stream: the classes of every task.
        digest: of the settings that change results.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        strategy: "CLIPStrategy",
        stream: list[list[int]],
        digest: str = "",
    ) -> None:
        self.checkpoints, self.strategy = checkpoints, strategy
        self.stream, self.digest = stream_hash(stream), digest
        self.repeats_batches = True  # False where a run resumes with other settings
        self._loop = 0  # number of the epoch loop within the task
        # Finished epochs of the loop, and steps of the current epoch.
        self._epoch, self._step = 0, 0
        self._epoch_rng: Snapshot = {}  # RNG state at the start of the current epoch
        self._labels = hashlib.sha256()  # of its batches so far
        self._state: Snapshot = {}
        self._resumed: Snapshot | None = None
        self._within: Snapshot | None = None  # position in an epoch that a signal stopped
        self._started = 0.0
        self.history: HistoryPlugin | None = None  # whose place in its file checkpoints hold
        self.earlier_seconds = 0.0  # training time of the task in earlier processes
        strategy.journal = self

    @property
    def position(self) -> tuple[int, int]:
        """Return the number of the epoch loop within the task, and of its epoch, from 1."""
        return self._loop, self._epoch + 1

    @property
    def seconds(self) -> float:
        """Return how long the task has trained so far, in earlier processes too."""
        return self.earlier_seconds + time.perf_counter() - self._started

    def load(self) -> Snapshot | None:
        """Return the newest saved state, to resume from; None if there is none."""
        saved = from_first(self.checkpoints.load)
        if saved is not None and not _is_state(saved):
            raise UserError(
                f"{self.checkpoints.folder}: not what a run writes: restart with --fresh"
            )
        if saved is not None and not self.strategy.resumes:
            raise UserError(
                f"{self.checkpoints.folder.parent}: was stopped, and its method cannot be resumed,"
                " since no checkpoint holds all of its state: restart with --fresh"
            )
        self._resumed = saved
        return saved

    def begin_task(self, tasks: int, progress: object) -> None:
        """Save or restore the state before a task.

        Args:
            tasks: number of finished tasks.
            progress: the results of the run so far.
        """
        self._loop, self._started = 0, time.perf_counter()
        if self._resumed is not None and self._resumed["tasks"] == tasks:
            self._state, self.earlier_seconds = self._resumed, self._resumed["seconds"]
            put(self.strategy, self._state["start"].value)
            return
        self._resumed, self.earlier_seconds = None, 0.0  # a merged task has no epoch loop
        self._state = {
            "stream": self.stream, "digest": self.digest, "tasks": tasks, "code": package_hash(),
            "progress": copied(progress), "seconds": 0.0, "start": Part(take(self.strategy)),
            "ends": {}, "at": None,
        }  # fmt: skip
        self._save()

    def enter(self, epochs: int) -> int:
        """Enter a loop of epochs; return the number of finished epochs to skip.

        Args:
            epochs: epochs of the loop.
        """
        loop, self._loop, self._epoch, self._within = self._loop, self._loop + 1, 0, None
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
        self._epoch = at["epoch"]
        self._within = at if at["steps"] and self._epoch < epochs else None
        return self._epoch

    def batches(self, loader: Iterable[list[Tensor]]) -> Iterator[list[Tensor]]:
        """Yield the batches of an epoch, except those that an earlier process trained on.

        Args:
            loader: yields batches: images, labels, ...

        Raises:
            UserError: it draws other batches than before, although the settings are the same.
        """
        done, self._within = self._within, None
        device = self.strategy.device
        if done:
            set_rng_state(self.strategy, done["rng"], device)
        self._epoch_rng, self._step = rng_state(self.strategy, device), 0
        self._labels = hashlib.sha256()
        for batch in loader:
            self._step += 1
            self._labels.update(batch[1].cpu().numpy().tobytes())
            if done is None:
                yield batch
            elif self._step == done["steps"]:
                self._check_batches(done["batches"])
                put_counters(self.strategy, done["snapshot"])
                done = None
        if done is not None:
            self._check_batches(done["batches"])

    def _check_batches(self, expected: str) -> None:
        """Refuse batches whose labels differ from those of the earlier process."""
        if self.repeats_batches and self._labels.hexdigest() != expected:
            raise UserError(
                f"{self.checkpoints.folder.parent}: an epoch's batches are not drawn as before:"
                f" remove {self.checkpoints.newest}, which was saved within an epoch, and repeat"
                " the command"
            )

    def step_done(self) -> None:
        """Save the state after a step, within an epoch."""
        self._save_at(take(self.strategy, optimizer=True), self._step)

    def epoch_done(self, epoch: int, epochs: int, piece: bool) -> None:
        """Save the state after an epoch.

        Args:
            epoch: counted from 1.
            epochs: epochs of the loop.
            piece: whether the loop runs over one experience of the task: the outcomes of earlier
                loops are not needed then.
        """
        loop, self._epoch = self._loop - 1, epoch
        snapshot = take(self.strategy, optimizer=True)
        if epoch == epochs:
            ends = {} if piece else self._state["ends"]
            self._state["ends"] = {**ends, loop: _without_optimizer(snapshot)}
        self._save_at(snapshot)

    def doubt(self, step: int) -> str:
        """Return how to resume from an older state, if the weights of the newest may be damaged.

        Args:
            step: first step of the current task with a NaN or infinite loss, counted from 1.

        Returns:
            a clause of the error; "" if a step from the newest state's weights succeeded.
        """
        at = self._state.get("at")
        proven = not at or at["snapshot"]["common"]["task_steps"] < step - 1
        if proven or not self.checkpoints.one_before():
            return ""
        return (
            f"; no step was made from {self.checkpoints.newest}: if its weights are to blame,"
            " remove it to resume from the previous checkpoint"
        )

    def _save_at(self, snapshot: Snapshot, steps: int = 0) -> None:
        self._state["seconds"] = self.seconds
        self._state["at"] = {
            "loop": self._loop - 1, "epoch": self._epoch, "steps": steps, "snapshot": snapshot,
            "rng": self._epoch_rng if steps else {},
            "batches": self._labels.hexdigest() if steps else "",
        }  # fmt: skip
        self._save()

    def _save(self) -> None:
        if not self.checkpoints.writes:
            return
        require(self.checkpoints.folder.parent)
        if self.history is not None:
            self._state["history"] = self.history.state()
        self.checkpoints.save(self._state)


def _without_optimizer(snapshot: Snapshot) -> Snapshot:
    return {k: v for k, v in snapshot.items() if k not in ("optimizer", "scheduler")}
