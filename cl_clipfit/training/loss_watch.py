"""What happens where the loss of a step is no number: the run stops, or the batch is left out."""

import hashlib
import math
from collections import deque
from typing import Any, Literal

import torch
from torch import Tensor

from cl_clipfit.errors import UserError

OnNan = Literal["stop", "skip"]
IN_A_ROW = 10  # batches left out one after the other, from which on the weights are to blame
_UNDER_WAY = 4  # steps of a GPU that are looked at later, without waiting for it


class DivergedError(UserError):
    """The loss is no number.

    Attributes:
        batch: which: task, step, loss, and the labels and places of its images.
        first_step: of the steps in a row, up to this one, without a number.
    """

    def __init__(self, message: str, batch: dict[str, Any], in_a_row: int = 1) -> None:
        super().__init__(message)
        self.batch, self.first_step = batch, batch["step"] - in_a_row + 1


class LossWatch:
    """Looks at the loss of every step, on a GPU a few steps later, so that nothing waits for it.

    Args:
        skip: leave such batches out; then every step waits for its loss.

    Attributes:
        in_a_row: batches without a number as their loss, one after the other, up to now.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.in_a_row = 0
        self._queue: deque[tuple[Tensor, Any, dict[str, Any]]] = deque()

    def leaves_out(self, strategy: Any, images: Tensor) -> bool:
        """Look at the step under way, after its backward pass; tell whether to leave it out.

        Args:
            strategy: whose `loss` it is.
            images: (B, ...) as the data hold them.

        Raises:
            DivergedError: the loss is no number, and the batch is not left out, or too many were.
        """
        loss = strategy.loss.detach()
        about = {
            "task": strategy.task_number, "images": images, "labels": strategy.mb_y,
            "step": strategy.task_steps,
        }  # fmt: skip
        if loss.device.type == "cuda" and not self.skip:
            known = loss.to("cpu", non_blocking=True)
            done = torch.cuda.Event()
            # The copy is on the stream of the loss's device, which need not be the current one.
            done.record(torch.cuda.current_stream(loss.device))
            self._queue.append((known, done, about))
            self._look(strategy, _UNDER_WAY)
            return False
        if math.isfinite(float(loss)):
            self.in_a_row = 0
            return False
        self.in_a_row += 1
        if not self.skip or self.in_a_row >= IN_A_ROW:
            self._stop(strategy, float(loss), about)
        found = describe_batch(strategy, float(loss), about)
        strategy.warn(
            f"task {found['task']}, step {found['step']}: the loss is {found['loss']}, the batch"
            f" of images {found['images']} was left out"
        )
        return True

    def flush(self, strategy: Any) -> None:
        """Look at all steps so far; errors as `leaves_out`."""
        self._look(strategy, 0)

    def _look(self, strategy: Any, under_way: int) -> None:
        while self._queue and (len(self._queue) > under_way or self._queue[0][1].query()):
            loss, done, about = self._queue.popleft()
            done.synchronize()
            if not math.isfinite(float(loss)):
                self._stop(strategy, float(loss), about)

    def _stop(self, strategy: Any, loss: float, about: dict[str, Any]) -> None:
        batch = describe_batch(strategy, loss, about)
        again = f", {self.in_a_row} times in a row" if self.skip else ""
        advice = "" if self.skip else ", or leave such batches out (--on-nan skip)"
        raise DivergedError(
            f"task {batch['task']}, step {batch['step']}: the loss is {batch['loss']}{again}:"
            f" lower the learning rate (--lr) or look at the images{advice}",
            batch,
            max(1, self.in_a_row),
        )


def describe_batch(strategy: Any, loss: float, about: dict[str, Any]) -> dict[str, Any]:
    """Return what `nan-batch.json` holds; "images" are places in the task's training data.

    An image that is not in them, but was mixed in by a plugin, is None.
    """
    wanted = [_fingerprint(image) for image in about["images"]]
    places: dict[bytes, int] = {}
    data = strategy.experience.dataset
    of_task = getattr(strategy.experience, "task_places", range(len(data)))
    for place in range(len(data)):
        places.setdefault(_fingerprint(data[place][0]), int(of_task[place]))
        if all(key in places for key in wanted):
            break
    return {
        "task": about["task"], "step": about["step"], "loss": str(loss),
        "images": [places.get(key) for key in wanted],
        "labels": about["labels"].tolist(),
    }  # fmt: skip


def _fingerprint(image: Tensor) -> bytes:
    return hashlib.sha256(image.cpu().contiguous().numpy().tobytes()).digest()
