"""What makes a run resumable, bit for bit: snapshots of a strategy, and where to put them back.

A task is gone through again from its start, as far as it prepares things, but epochs that were
finished are left out: their outcome is put in their place.
"""

import random
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cl_clipfit.checkpoints import Checkpoints, UnsupportedError, pack, unpack
from cl_clipfit.errors import UserError
from cl_clipfit.files import sha256
from cl_clipfit.memory import generators

Snapshot = dict[str, Any]
# Attributes of `CLIPStrategy` that change as it learns; a method's own are found by themselves.
_OWN = (
    "task_classes", "seen_classes", "tasks_seen", "warnings", "records", "measured_seconds",
    "eval_mb_size", "task_steps",
)  # fmt: skip


_STATE = (
    ("stream", (str,)), ("tasks", (int,)), ("seconds", (float,)), ("start", (dict,)),
    ("ends", (dict,)), ("at", (dict, type(None))), ("progress", (dict, type(None))),
)  # fmt: skip


def take(strategy: Any, optimizer: bool = False) -> Snapshot:
    """Return the state of a strategy: weights it ever trained, draws, and what it remembers.

    Args:
        strategy: a `CLIPStrategy`.
        optimizer: whether its optimiser and schedule go on from here.
    """
    model = strategy.model
    parameters = dict(model.named_parameters())
    found: Snapshot = {
        "values": {n: parameters[n].detach().clone() for n in model.pretrained_values},
        "micro_batch": model.micro_batch,
        "left_out": strategy.watch.in_a_row,
        "memory": _memory(strategy),
        "draws": _draws(strategy),
    }
    if optimizer:
        found["optimizer"] = strategy.optimizer.state_dict()
        schedule = strategy.scheduler.state_dict()
        found["scheduler"] = {k: v for k, v in schedule.items() if _holds(v)}
    # Copied here: the next steps change tensors in place.
    return _copied(found)


def put(strategy: Any, snapshot: Snapshot) -> None:
    """Bring a strategy into the state that `take` returned."""
    model = strategy.model
    parameters = dict(model.named_parameters())
    for name in snapshot["values"]:  # trained in an earlier task, and pretrained now
        model.pretrained_values.setdefault(name, parameters[name].detach().clone())
    model.load_values(snapshot["values"])
    if not strategy.micro_batch_given:
        model.micro_batch = snapshot["micro_batch"]
    strategy.watch.in_a_row = snapshot["left_out"]
    said = strategy.warnings
    for name, value in _copied(snapshot["memory"], strategy.device).items():
        if name in strategy.common_attributes and name not in _OWN:
            raise ValueError(f"a checkpoint does not hold {name}")
        setattr(strategy, name, value)
    strategy.warnings += [text for text in said if text not in strategy.warnings]
    if "optimizer" in snapshot:
        _put_optimizer(strategy.optimizer, strategy.scheduler, snapshot)
    _set_draws(strategy, snapshot["draws"])


def _put_optimizer(optimizer: Any, schedule: Any, snapshot: Snapshot) -> None:
    """Put back what an optimiser has gathered, and where in its schedule it is.

    Rates and other settings stay those that it was built with: a resumed run may have new ones.
    """
    own = optimizer.state_dict()
    optimizer.load_state_dict({**own, "state": _copied(snapshot["optimizer"]["state"])})
    schedule.last_epoch = snapshot["scheduler"]["last_epoch"]
    schedule._step_count = snapshot["scheduler"]["_step_count"]
    rates = [base * f(schedule.last_epoch) for base, f in zip(
        schedule.base_lrs, schedule.lr_lambdas, strict=True)]  # fmt: skip
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def _copied(value: Any, device: Any = "cpu") -> Any:
    tensors: dict[str, Tensor] = {}
    packed = pack(value, tensors)
    return unpack(packed, tensors, device)


def _holds(value: Any) -> bool:
    """Tell whether a checkpoint can hold a value."""
    try:
        pack(value, {})
    except (UnsupportedError, RecursionError):
        return False
    return True


def _memory(strategy: Any) -> dict[str, Any]:
    """Return what a strategy remembers: plain values and tensors among its own attributes.

    What holds a model, parameters, or a graph is made again when the task begins again.
    """
    own = [name for name in vars(strategy) if name not in strategy.common_attributes]
    found = {name: getattr(strategy, name) for name in _OWN}
    return found | {n: v for n in own if _holds(v := getattr(strategy, n))}


def _draws(strategy: Any) -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    found = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "own": {path: g.get_state() for path, g in generators(strategy).items()},
    }
    if strategy.device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(strategy.device)
    return found


def _set_draws(strategy: Any, draws: Mapping[str, Any]) -> None:
    random.setstate(draws["python"])
    name, keys, *rest = draws["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(draws["torch"])
    known = generators(strategy)
    for path, state in draws["own"].items():
        if path in known:
            known[path].set_state(state)
    if "cuda" in draws:
        torch.cuda.set_rng_state(draws["cuda"], strategy.device)


def stream_hash(task_classes: list[list[int]]) -> str:
    """Return what tells streams apart: a thousand tasks need not stand in every checkpoint."""
    return sha256(repr([list(classes) for classes in task_classes]).encode())


class Journal:
    """Saves a run after every epoch, and leaves out the epochs that an earlier process finished.

    Args:
        checkpoints: of the run folder.
        strategy: the method; its `journal` is set to this.
        stream: the classes of every task.
    """

    def __init__(self, checkpoints: Checkpoints, strategy: Any, stream: list[list[int]]) -> None:
        self.checkpoints, self.strategy = checkpoints, strategy
        self.stream = stream_hash(stream)
        self._loop = 0  # of epochs, within the task
        self._state: dict[str, Any] = {}
        self._resumed: dict[str, Any] | None = None
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
            "stream": self.stream, "tasks": tasks, "progress": _copied(progress), "seconds": 0.0,
            "start": take(self.strategy), "ends": {}, "at": None,
        }  # fmt: skip
        self._save()

    def enter(self, epochs: int) -> int:
        """Begin a loop of epochs; return how many of them are left out.

        Args:
            epochs: of the loop.
        """
        loop, self._loop = self._loop, self._loop + 1
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
        done: int = at["epoch"]
        return done

    def epoch_done(self, epoch: int, epochs: int, piece: bool) -> None:
        """Save the state after an epoch.

        Args:
            epoch: counted from 1.
            epochs: of the loop.
            piece: the loop is over a piece of a task's images: of earlier ones nothing is needed.
        """
        loop, snapshot = self._loop - 1, take(self.strategy, optimizer=True)
        seconds = time.perf_counter() - self._started
        self._state["seconds"] = self.earlier_seconds + seconds
        self._state["at"] = {"loop": loop, "epoch": epoch, "snapshot": snapshot}
        if epoch == epochs:
            ends = {} if piece else self._state["ends"]
            self._state["ends"] = {**ends, loop: _without_optimizer(snapshot)}
        self._save()

    def _save(self) -> None:
        folder = self.checkpoints.folder.parent
        if not folder.is_dir():
            raise UserError(f"{folder} has vanished during the run: repeat the command")
        self.checkpoints.save(self._state)


def _without_optimizer(snapshot: Snapshot) -> Snapshot:
    return {k: v for k, v in snapshot.items() if k not in ("optimizer", "scheduler")}
