"""When memory runs out: what was under way is dropped, and tried again with fewer images."""

import gc
import random
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cl_clipfit import stopping
from cl_clipfit.errors import UserError

NEEDS_LESS = "a smaller model, --precision bf16 or --recompute needs less"
# Of CUDA, of PyTorch's allocators on CPUs and on MPS, and of cuBLAS and cuDNN, in this order.
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def fits(work: Callable[[], Any]) -> bool:
    """Do `work`; return False where memory ran out, once what it held has been let go.

    Tensors that outlive `work` in attributes are the caller's to drop.
    """
    try:
        work()
        return True
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    # Here, not in the handler: the error's traceback still holds the tensors there.
    return False


def release() -> None:
    """Give back what nothing holds any more, so that smaller pieces of it can be had."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def in_batches(
    function: Callable[..., Tensor],
    images: Any,
    device: torch.device,
    size: int,
    *beside: Tensor,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, int]:
    """Apply a function to `size` images at a time, to half as many whenever memory runs out.

    Args:
        function: takes images (B, ...) on the device, and the same rows of each tensor of
            `beside`; a row of its result for each image.
        images: (N, ...), or what stands for such a tensor.
        device: where to bring them.
        size: images at a time.
        beside: tensors (N, ...) with a row for each image.
        progress: told the images so far, and all, after every batch.

    Returns:
        the results one after the other, (N, ...), and the images at a time at the end.

    Raises:
        UserError: there is not memory enough for one image.
    """
    found: Tensor | None = None
    done = 0

    def add(batch: Any) -> None:
        nonlocal found
        rows = (tensor[done : done + len(batch)].to(device) for tensor in beside)
        part = function(batch.to(device), *rows)
        if found is None:  # as a whole: parts put together in the end need twice the memory
            found = part.new_empty((len(images), *part.shape[1:]))
        found[done : done + len(batch)] = part

    while done < len(images) or found is None:
        batch = images[done : done + size]
        if fits(partial(add, batch)):
            done += len(batch)
            if progress is not None:
                progress(done, len(images))
            continue
        if len(batch) <= 1:
            raise UserError(f"out of memory with one image at a time: {NEEDS_LESS}")
        size = (min(size, len(batch)) + 1) // 2
        release()
    return found, size


class Encoder(Protocol):
    """What has a model, and a size of batches that fits into memory."""

    model: Any

    def in_batches(self, function: Callable[..., Tensor], images: Any) -> Tensor:
        """Apply a function to a number of images at a time; to fewer once memory runs out."""


@torch.no_grad()
def encode_images(encoder: Encoder, images: Any) -> Tensor:
    """Encode any number of images with the current weights, in the encoder's batches.

    Args:
        encoder: a strategy, or the `FrozenImages` of a command.
        images: (N, ...), or what stands for such a tensor.

    Returns:
        (N, d), unit length, on the CPU.

    Raises:
        UserError: there is not memory enough for one image.
    """
    encode = encoder.model.image_features
    return encoder.in_batches(lambda batch: encode(batch).cpu(), images)


class Draws:
    """States of all generators that a step may draw from, for a repeated step to draw the same.

    They are the global ones of Python, NumPy and PyTorch, and the `torch.Generator`s among the
    attributes of an object, or among those of an attribute, such as `PromptDraws`.

    Args:
        owner: the strategy.
        device: where it computes.
    """

    def __init__(self, owner: object, device: torch.device) -> None:
        self._own = [(g, g.get_state()) for g in generators(owner).values()]
        self._python, self._numpy = random.getstate(), np.random.get_state()
        self._torch, self._device = torch.get_rng_state(), device
        # The state lies on the host: to read it waits for nothing.
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Put every generator back to where it was."""
        for generator, state in self._own:
            generator.set_state(state)
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)


def generators(owner: object) -> dict[str, torch.Generator]:
    """Return the generators among the attributes of an object, or of an attribute, by name."""
    found: dict[str, torch.Generator] = {}
    for name, value in vars(owner).items():
        within = {} if isinstance(value, nn.Module) else getattr(value, "__dict__", {})
        for path, one in {name: value, **{f"{name}.{n}": v for n, v in within.items()}}.items():
            if isinstance(one, torch.Generator) and not any(one is g for g in found.values()):
                found[path] = one
    return found


class RepeatableSteps:
    """Avalanche's loop over the batches of an epoch, a step of which may be repeated.

    It goes before Avalanche's template among the bases of a class, whose attributes it uses.
    """

    features: Any

    def allow_repeats(self: Any) -> None:
        """Take note of a size that the user chose: it is not made smaller."""
        self.micro_batch_given = self.model.micro_batch is not None

    def training_epoch(self: Any, **kwargs: Any) -> None:
        """Run the steps of an epoch: Avalanche's loop, but for the passes that may be repeated."""
        journal = self.journal
        for batch in journal.batches(self.dataloader) if journal else self.dataloader:
            if self._stop_training:
                break
            self.mbatch, images = batch, batch[0]
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            self.optimizer.zero_grad()
            self.loss = self._make_empty_loss()
            self._before_forward(**kwargs)
            self._run_passes(**kwargs)
            self._after_backward(**kwargs)
            self._before_update(**kwargs)
            self.task_steps += 1
            if self.watch.leaves_out(self, images):
                self.scheduler.step()  # a batch that is left out leaves the rest as it was
            else:
                self.optimizer_step()
            self._after_update(**kwargs)
            self._after_training_iteration(**kwargs)
            if stopping.pending():
                if journal:
                    self.watch.flush(self)
                    journal.step_done()
                stopping.check()
        self.watch.flush(self)

    def _run_passes(self: Any, **kwargs: Any) -> None:
        """Compute loss and gradients of a step; fewer images at a time once memory runs out."""
        batch, before = list(self.mbatch), self.model.micro_batch
        draws = Draws(self, self.device)
        while not fits(lambda: self._passes(**kwargs)):
            self.model.micro_batch = self._fewer_images(len(batch[0]))
            self.mb_output, self.features, self.mbatch = None, None, list(batch)
            self.optimizer.zero_grad()
            self.loss = self._make_empty_loss()
            release()
            draws.restore()
        if self.model.micro_batch != before:
            self.warn(f"out of memory: {self.model.micro_batch} images at a time from now on")

    def _passes(self: Any, **kwargs: Any) -> None:
        self.mb_output = self.forward()
        self._after_forward(**kwargs)
        self.loss += self.criterion()
        self._before_backward(**kwargs)
        self.backward()

    def _fewer_images(self: Any, batch_size: int) -> int:
        size = min(self.model.micro_batch or batch_size, batch_size)
        if size == 1:
            raise UserError(f"out of memory in training, with one image at a time: {NEEDS_LESS}")
        if self.micro_batch_given:
            raise UserError(
                f"out of memory with --micro-batch {self.model.micro_batch}: give a smaller one,"
                f" or auto; {NEEDS_LESS}"
            )
        return (size + 1) // 2
