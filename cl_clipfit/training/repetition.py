"""Repeat a training step with fewer images at a time if memory runs out."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from cl_clipfit.errors import UserError
from cl_clipfit.runtime import processes
from cl_clipfit.runtime.out_of_memory import NEEDS_LESS, release
from cl_clipfit.runtime.rng import rng_state, set_rng_state
from cl_clipfit.runtime.shares import fit_everywhere

if TYPE_CHECKING:
    from cl_clipfit.training.loop import TrainingLoop


def repeat_until_it_fits(loop: "TrainingLoop", passes: Callable[[], None]) -> None:
    """Compute loss and gradients of a step; use fewer images at a time if memory runs out.

    A repeated step draws the same random numbers. If memory runs out in one of several processes,
    all repeat it.
    """
    assert loop.mbatch is not None
    batch, before = list(loop.mbatch), loop.model.micro_batch
    state = rng_state(loop, loop.device)
    while not fit_everywhere(passes, loop.divisible):
        images = -(-len(batch[0]) // (processes.world() if loop.divisible else 1))
        loop.model.micro_batch = _fewer_images(
            loop.model.micro_batch, images, loop.micro_batch_given
        )
        loop.mb_output, loop.features, loop.mbatch = None, None, list(batch)
        clear_gradients(loop)
        loop.loss = loop._make_empty_loss()
        release()
        set_rng_state(loop, state, loop.device)
    if loop.model.micro_batch != before:
        loop.warn(f"out of memory: {loop.model.micro_batch} images at a time from now on")


def trained(loop: "TrainingLoop") -> list[Tensor]:
    """Return the optimiser's parameters, and those of a selection that it does not hold."""
    groups = [group["params"] for group in loop.optimizer.param_groups]
    return [*loop.selection.values(), *(p for group in groups for p in group)]


def clear_gradients(loop: "TrainingLoop") -> None:
    """Clear the gradients of what is trained."""
    for parameter in trained(loop):
        parameter.grad = None


def _fewer_images(micro_batch: int | None, batch_size: int, given: bool) -> int:
    """Return how many images to encode at a time where memory did not do.

    Args:
        micro_batch: images at a time before; None for all.
        batch_size: images that this process encodes in a step.
        given: whether the user has set the number.

    Raises:
        UserError: it was one image already, or the user has set the number.
    """
    size = min(micro_batch or batch_size, batch_size)
    if size == 1:
        raise UserError(f"out of memory in training, with one image at a time: {NEEDS_LESS}")
    if given:
        raise UserError(
            f"out of memory with --micro-batch {micro_batch}: give a smaller one, or auto;"
            f" {NEEDS_LESS}"
        )
    return (size + 1) // 2
