"""Detect a NaN or infinite loss: stop the run, or skip the batch."""

import hashlib
import math
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from cl_clipfit.errors import UserError

if TYPE_CHECKING:
    from cl_clipfit.training.loop import TrainingLoop

OnNan = Literal["stop", "skip"]
Batch = dict[str, Any]
IN_A_ROW = 10  # after this many skipped batches in a row, the weights must be the cause
_UNDER_WAY = 4  # steps that a GPU may run ahead before their loss is checked


class DivergedError(UserError):
    """The loss is NaN or infinite.

    Attributes:
        batch: task, step and loss, and the labels and positions of its images.
        first_step: first of the consecutive steps, up to this one, with such a loss.
    """

    def __init__(self, message: str, batch: Batch, in_a_row: int = 1) -> None:
        super().__init__(message)
        self.batch, self.first_step = batch, batch["step"] - in_a_row + 1


class LossWatch:
    """Checks the loss of every step; on a GPU a few steps later, to avoid waiting for it.

    Args:
        skip: skip batches with a NaN or infinite loss; every step waits for its loss then.

    Attributes:
        in_a_row: number of consecutive batches with a NaN or infinite loss up to now.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.in_a_row = 0
        self._queue: deque[tuple[Tensor, torch.cuda.Event, Batch]] = deque()

    def leaves_out(self, strategy: "TrainingLoop", images: Tensor) -> bool:
        """Check the loss of the current step, after its backward pass; return whether to skip it.

        Args:
            strategy: the method, whose `loss` is checked.
            images: (B, ...), as in the data set.

        Raises:
            DivergedError: the loss is NaN or infinite, and batches are not skipped or too many in a
                row were.
        """
        loss = strategy.loss.detach()
        about = {
            "task": strategy.task_number, "images": images, "labels": strategy.mb_y,
            "step": strategy.task_steps, "method_loss": strategy.method_loss,
            "plugin_loss": strategy.plugin_loss,
        }  # fmt: skip
        if loss.device.type == "cuda" and not self.skip:
            on_host = loss.to("cpu", non_blocking=True)
            done = torch.cuda.Event()
            # The copy runs on the stream of the loss's device, which may not be the current one.
            done.record(torch.cuda.current_stream(loss.device))
            self._queue.append((on_host, done, about))
            self._look(strategy, _UNDER_WAY)
            return False
        if math.isfinite(float(loss)):
            self.in_a_row = 0
            return False
        self.in_a_row += 1
        if not self.skip or self.in_a_row >= IN_A_ROW or _certain_cause(strategy, about):
            self._stop(strategy, float(loss), about)
        batch = describe_batch(strategy, float(loss), about)
        strategy.warn(
            f"task {batch['task']}, step {batch['step']}: the loss is {batch['loss']}, the batch"
            f" of images {batch['images']} was skipped"
        )
        return True

    def flush(self, strategy: "TrainingLoop") -> None:
        """Check the loss of all steps so far; raises like `leaves_out`."""
        self._look(strategy, 0)

    def _look(self, strategy: "TrainingLoop", under_way: int) -> None:
        while self._queue and (len(self._queue) > under_way or self._queue[0][1].query()):
            loss, done, about = self._queue.popleft()
            done.synchronize()
            if not math.isfinite(float(loss)):
                self._stop(strategy, float(loss), about)

    def _stop(self, strategy: "TrainingLoop", loss: float, about: Batch) -> None:
        batch = describe_batch(strategy, loss, about)
        again = f", {self.in_a_row} times in a row" if self.skip else ""
        advice = "" if self.skip else ", or skip such batches (--on-nan skip)"
        cause = _certain_cause(strategy, about) or (
            f"the loss is {batch['loss']}{again}: lower the learning rate (--lr) or look at the"
            f" images{advice}"
        )
        message = f"task {batch['task']}, step {batch['step']}: {cause}"
        raise DivergedError(message, batch, max(1, self.in_a_row))


def _certain_cause(strategy: "TrainingLoop", about: Batch) -> str:
    """Return what makes a loss infinite at any learning rate, and what to do; "" if nothing."""
    # Only here: the watch alone needs no more than PyTorch, as `benchmarks.gpu` has it.
    from cl_clipfit.config.options import ScopeOptions
    from cl_clipfit.training.snapshot import foreign_plugins

    ranked, names = set(strategy.label_space()), strategy.model.class_names
    remedy = "override label_space() to return all classes that train, such as seen_classes"
    if isinstance(strategy.options, ScopeOptions):
        remedy = "set ce_scope=seen"
    if outside := sorted(set(about["labels"].tolist()) - ranked):
        label = f"label {outside[0]} ({names[outside[0]]!r})"
        return f"the batch has {label}, which is outside of label_space(): {remedy}"
    of_method, of_plugins = float(about["method_loss"]), float(about["plugin_loss"])
    if math.isfinite(of_plugins) or not math.isfinite(of_method):
        return ""
    text = f"the loss of a plugin is {of_plugins} ({', '.join(foreign_plugins(strategy))})"
    unranked = [label for label in strategy.seen_classes if label not in ranked]
    if not unranked:
        return text
    label = f"label {unranked[0]} ({names[unranked[0]]!r})"
    return f"{text}: the logit of {label}, outside of label_space(), is -inf: {remedy}"


def describe_batch(strategy: "TrainingLoop", loss: float, about: Batch) -> Batch:
    """Return the content of `nan-batch.json`; "images" are positions in the task's training data.

    The position of an image that a plugin mixed in is None.
    """
    fingerprints = [_fingerprint(image) for image in about["images"]]
    places: dict[bytes, int] = {}
    data = strategy.experience.dataset
    of_task = getattr(strategy.experience, "task_places", range(len(data)))
    for place in range(len(data)):
        places.setdefault(_fingerprint(data[place][0]), int(of_task[place]))
        if all(key in places for key in fingerprints):
            break
    return {
        "task": about["task"], "step": about["step"], "loss": str(loss),
        "images": [places.get(key) for key in fingerprints],
        "labels": about["labels"].tolist(),
    }  # fmt: skip


def _fingerprint(image: Tensor) -> bytes:
    return hashlib.sha256(image.cpu().contiguous().numpy().tobytes()).digest()
