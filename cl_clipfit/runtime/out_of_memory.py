"""When memory runs out: what was under way is dropped, and tried again with fewer images."""

import gc
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from cl_clipfit.errors import UserError

NEEDS_LESS = "a smaller model, --precision bf16 or --recompute needs less"
# Of CUDA, of PyTorch's allocators on CPUs and on MPS, and of cuBLAS and cuDNN, in this order.
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports that memory ran out, on a device or on the host."""
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
