"""Snapshots of a strategy: all that its further training depends on, and how to put it back."""

import random
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from cl_clipfit.runtime.rng import draws_of, set_draws
from cl_clipfit.storage.checkpoints import UnsupportedError, pack, unpack

Snapshot = dict[str, Any]
_SCALARS = (bool, int, float, complex, str, bytes, type(None), np.generic, np.ndarray)
_DEEP = 20  # a list may hold itself
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState)
# Plugins of Avalanche's own, and ours, that remember nothing but what a snapshot holds.
_STATELESS = ("StepCallback", "Clock", "EvaluationPlugin", "PeriodicEval")
# Attributes of `CLIPStrategy` that change as it learns; a method's own are found by themselves.
_OWN = (
    "task_classes", "seen_classes", "tasks_seen", "warnings", "records", "measured_seconds",
    "eval_mb_size", "task_steps",
)  # fmt: skip


def take(strategy: Any, optimizer: bool = False) -> Snapshot:
    """Return the state of a strategy: weights it ever trained, draws, and what it remembers.

    Args:
        strategy: a `CLIPStrategy`.
        optimizer: whether its optimiser and schedule go on from here.
    """
    model = strategy.model
    parameters, memory = dict(model.named_parameters()), _memory(strategy)
    found: Snapshot = {
        "values": {n: parameters[n].detach().clone() for n in model.pretrained_values},
        "micro_batch": model.micro_batch,
        "left_out": strategy.watch.in_a_row,
        "memory": memory,
        "draws": draws_of(strategy),
        "buffers": {n: b.clone() for n, b in _buffers(strategy).items()},
        "clock": {k: v for k, v in vars(strategy.clock).items() if type(v) is int},
        "lost": _lost(strategy, memory),
    }
    if optimizer:
        found["optimizer"] = strategy.optimizer.state_dict()
        found["optimizer_class"] = type(strategy.optimizer).__name__
        schedule = strategy.scheduler.state_dict()
        found["scheduler"] = {k: v for k, v in schedule.items() if _holds(v)}
    # Copied here: the next steps change tensors in place.
    return copied(found)


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
    for name, value in copied(snapshot["memory"], strategy.device).items():
        if name in strategy.common_attributes and name not in _OWN:
            raise ValueError(f"a checkpoint does not hold {name}")
        setattr(strategy, name, value)
    strategy.warnings += [text for text in said if text not in strategy.warnings]
    if snapshot["lost"]:
        strategy.warn(
            f"went on without {', '.join(snapshot['lost'])}, which no checkpoint holds: numbers may"
            " not be those of an unbroken run"
        )
    for name, buffer in _buffers(strategy).items():
        buffer.copy_(snapshot["buffers"].get(name, buffer))
    if "optimizer" in snapshot:
        _put_optimizer(strategy.optimizer, strategy.scheduler, snapshot)
    put_counters(strategy, snapshot)


def put_counters(strategy: Any, snapshot: Snapshot) -> None:
    """Put back what an epoch's beginning changes: draws, and Avalanche's counts of steps."""
    vars(strategy.clock).update(snapshot["clock"])
    set_draws(strategy, snapshot["draws"])


def _put_optimizer(optimizer: Any, schedule: Any, snapshot: Snapshot) -> None:
    """Put back what an optimiser has gathered, and where in its schedule it is.

    Rates and other settings stay those that it was built with: a resumed run may have new ones.
    """
    own = optimizer.state_dict()
    if snapshot["optimizer_class"] == type(optimizer).__name__:  # a forced run may have another
        optimizer.load_state_dict({**own, "state": copied(snapshot["optimizer"]["state"])})
    schedule.last_epoch = snapshot["scheduler"]["last_epoch"]
    schedule._step_count = snapshot["scheduler"]["_step_count"]
    rates = [base * f(schedule.last_epoch) for base, f in zip(
        schedule.base_lrs, schedule.lr_lambdas, strict=True)]  # fmt: skip
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def copied(value: Any, device: Any = "cpu") -> Any:
    """Return a copy of what a checkpoint can hold."""
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


def _buffers(strategy: Any) -> dict[str, Tensor]:
    """Return the buffers that a method has added to the model."""
    known = strategy.model_buffers
    return {n: b for n, b in strategy.model.named_buffers() if n not in known}


def _lost(strategy: Any, held: Mapping[str, Any]) -> list[str]:
    """Return the names of what a method remembers and no checkpoint can hold, to be told."""
    own = {n: v for n, v in vars(strategy).items() if n not in strategy.common_attributes}
    left_out = {n: v for n, v in own.items() if n not in held}
    found = [n for n, v in left_out.items() if isinstance(v, _GENERATORS) or _plain(v)]
    plugins = (type(plugin).__name__ for plugin in strategy.plugins)
    return sorted(found) + sorted(name for name in plugins if name not in _STATELESS)


def _plain(value: Any, depth: int = 0) -> bool:
    """Tell whether a value is made of numbers, texts and tensors alone: it is not made again."""
    if isinstance(value, Mapping | list | tuple | set | frozenset | deque):
        items = value.values() if isinstance(value, Mapping) else value
        return depth > _DEEP or all(_plain(item, depth + 1) for item in items)
    if isinstance(value, Tensor):
        return not (isinstance(value, nn.Parameter) or value.requires_grad)
    return isinstance(value, _SCALARS)
