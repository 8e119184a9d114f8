"""Take and restore snapshots of a strategy: everything that its further training depends on."""

import random
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from cl_clipfit.runtime.rng import rng_state, set_rng_state
from cl_clipfit.storage.checkpoints import UnsupportedError, pack, unpack

if TYPE_CHECKING:
    from cl_clipfit.training.loop import TrainingLoop
    from cl_clipfit.training.strategy import CLIPStrategy

Snapshot = dict[str, Any]
_SCALARS = (bool, int, float, complex, str, bytes, type(None), np.generic, np.ndarray)
_DEEP = 20  # levels of nesting that are checked; a list may contain itself
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState)
# Plugins that keep no state outside of a snapshot.
_STATELESS = ("StepCallback", "HistoryPlugin", "Clock", "EvaluationPlugin", "PeriodicEval")
# Attributes of every strategy that change during training; those of a method are in `state_dict`.
_COMMON = (
    "task_classes", "seen_classes", "tasks_seen", "warnings", "records", "measured_seconds",
    "eval_mb_size", "task_steps",
)  # fmt: skip


def take(strategy: "CLIPStrategy", optimizer: bool = False) -> Snapshot:
    """Return the state of a strategy: weights it ever trained, RNG state, and its attributes.

    Args:
        strategy: the method.
        optimizer: whether to include its optimiser and schedule.
    """
    model, state = strategy.model, strategy.state_dict()
    parameters = dict(model.named_parameters())
    snapshot: Snapshot = {
        "values": {n: parameters[n].detach().clone() for n in model.pretrained_values},
        "micro_batch": model.micro_batch,
        "left_out": strategy.watch.in_a_row,
        "common": {name: getattr(strategy, name) for name in _COMMON},
        "state": state,
        "rng": rng_state(strategy, strategy.device),
        "buffers": {n: b.clone() for n, b in _buffers(strategy).items()},
        "clock": {k: v for k, v in vars(strategy.clock).items() if type(v) is int},
        "lost": _lost(strategy, state),
    }
    if optimizer:
        assert strategy.scheduler is not None
        schedule = strategy.scheduler.state_dict()
        snapshot["optimizer"] = strategy.optimizer.state_dict()
        snapshot["optimizer_class"] = type(strategy.optimizer).__name__
        snapshot["scheduler"] = {k: v for k, v in schedule.items() if _can_hold(v)}
    # Copied, because the next steps change tensors in place.
    return copied(snapshot)


def put(strategy: "CLIPStrategy", snapshot: Snapshot) -> None:
    """Restore the state of a strategy that `take` returned."""
    model = strategy.model
    parameters = dict(model.named_parameters())
    for name in snapshot["values"]:  # trained in an earlier task; pretrained in this process
        model.pretrained_values.setdefault(name, parameters[name].detach().clone())
    model.load_values(snapshot["values"])
    if not strategy.micro_batch_given:
        model.micro_batch = snapshot["micro_batch"]
    strategy.watch.in_a_row = snapshot["left_out"]
    shown = strategy.warnings
    common = copied(snapshot["common"], strategy.device)
    for name in _COMMON:
        setattr(strategy, name, common[name])
    strategy.load_state_dict(copied(snapshot["state"], strategy.device))
    for text in shown:
        strategy.warn(text)
    if snapshot["lost"]:
        strategy.warn(
            f"resumed without {', '.join(snapshot['lost'])}, which checkpoints cannot hold: numbers"
            " may differ from those of an uninterrupted run"
        )
    for name, buffer in _buffers(strategy).items():
        buffer.copy_(snapshot["buffers"].get(name, buffer))
    if "optimizer" in snapshot:
        _put_optimizer(strategy, snapshot)
    put_counters(strategy, snapshot)


def put_counters(strategy: "CLIPStrategy", snapshot: Snapshot) -> None:
    """Restore what the start of an epoch changes: RNG state, and Avalanche's step counters."""
    strategy.clock.__dict__.update(snapshot["clock"])
    set_rng_state(strategy, snapshot["rng"], strategy.device)


def _put_optimizer(strategy: "CLIPStrategy", snapshot: Snapshot) -> None:
    """Restore the state of the optimiser, and its position in the schedule.

    Learning rates and other settings are those it was built with: a resumed run may change them.
    """
    optimizer, schedule = strategy.optimizer, strategy.scheduler
    assert isinstance(schedule, LambdaLR)
    # A run that was resumed by force may have another optimiser.
    if snapshot["optimizer_class"] == type(optimizer).__name__:
        state = copied(snapshot["optimizer"]["state"])
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    schedule.last_epoch = snapshot["scheduler"]["last_epoch"]
    schedule._step_count = snapshot["scheduler"]["_step_count"]
    rates = [base * f(schedule.last_epoch) for base, f in zip(
        schedule.base_lrs, schedule.lr_lambdas, strict=True)]  # fmt: skip
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def copied(value: Any, device: torch.device | str = "cpu") -> Any:
    """Return a copy of what a checkpoint can hold."""
    tensors: dict[str, Tensor] = {}
    packed = pack(value, tensors)
    return unpack(packed, tensors, device)


def kept_bytes(strategy: "CLIPStrategy") -> int:
    """Return the size of what a method and Avalanche's plug-ins keep from earlier tasks."""
    tensors: dict[str, Tensor] = {}
    pack(strategy.state_dict(), tensors)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    others = [plugin for plugin in strategy.plugins if type(plugin).__name__ not in _STATELESS]
    return size + _held_bytes(others, set())


def _held_bytes(value: Any, counted: set[int]) -> int:
    """Return the size of the tensors and images that plug-ins of Avalanche hold, but for models."""
    if id(value) in counted or isinstance(value, nn.Module):
        return 0
    counted.add(id(value))
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if hasattr(value, "targets") and hasattr(value, "__getitem__"):  # a data set
        first = value[0] if len(value) else ()
        return len(value) * sum(part.nbytes for part in first if isinstance(part, Tensor))
    if isinstance(value, Mapping):
        return sum(_held_bytes(item, counted) for item in value.values())
    if isinstance(value, list | tuple | set):
        return sum(_held_bytes(item, counted) for item in value)
    known = type(value).__module__.startswith("avalanche.")
    return _held_bytes(vars(value), counted) if known and hasattr(value, "__dict__") else 0


def plain_attributes(strategy: "CLIPStrategy") -> Snapshot:
    """Return the attributes that a method added to a strategy: plain values and tensors.

    Attributes with a model, parameters or a graph are created again when the task is resumed.
    """
    return {name: value for name, value in _added(strategy).items() if _can_hold(value)}


def _added(strategy: "CLIPStrategy") -> Snapshot:
    """Return the attributes that a strategy has in addition to those of every strategy."""
    return {n: v for n, v in vars(strategy).items() if n not in strategy.common_attributes}


def _can_hold(value: object) -> bool:
    """Return whether a checkpoint can hold a value."""
    try:
        pack(value, {})
    except (UnsupportedError, RecursionError):
        return False
    return True


def _buffers(strategy: "CLIPStrategy") -> dict[str, Tensor]:
    """Return the buffers that a method added to the model."""
    common = strategy.model_buffers
    return {n: b for n, b in strategy.model.named_buffers() if n not in common}


def _lost(strategy: "CLIPStrategy", state: Mapping[str, object]) -> list[str]:
    """Return the names of the state that checkpoints cannot hold, to be reported."""
    missing = {n: v for n, v in _added(strategy).items() if n not in state and not _can_hold(v)}
    lost = [n for n, v in missing.items() if isinstance(v, _GENERATORS) or _is_plain(v)]
    return sorted(lost) + sorted(foreign_plugins(strategy))


def foreign_plugins(strategy: "TrainingLoop") -> list[str]:
    """Return the types of the plugins that are neither Avalanche's defaults nor this package's."""
    plugins = (type(plugin).__name__ for plugin in strategy.plugins)
    return [name for name in plugins if name not in _STATELESS]


def _is_plain(value: object, depth: int = 0) -> bool:
    """Return whether a value consists only of numbers, text and tensors; it is state then."""
    if isinstance(value, Mapping | list | tuple | set | frozenset | deque):
        items = value.values() if isinstance(value, Mapping) else value
        return depth > _DEEP or all(_is_plain(item, depth + 1) for item in items)
    if isinstance(value, Tensor):
        return not (isinstance(value, nn.Parameter) or value.requires_grad)
    return isinstance(value, _SCALARS)
