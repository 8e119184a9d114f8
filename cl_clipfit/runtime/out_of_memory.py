"""Repeat work with fewer images when memory runs out."""

import gc
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from cl_clipfit.errors import UserError

NEEDS_LESS = "a smaller model, --precision bf16 or --recompute needs less"
# Messages of CUDA, of PyTorch's allocators on the CPU and on MPS, and of cuBLAS and cuDNN.
_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports that memory ran out, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def fits(work: Callable[[], Any]) -> bool:
    """Call `work`; return False if memory ran out, after its tensors have been released.

    The caller has to release tensors that `work` stored in attributes.
    """
    try:
        work()
        return True
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    # Not in the handler: the error's traceback still holds the tensors there.
    return False


def release() -> None:
    """Release unused memory, so that it can be allocated in smaller pieces."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def in_batches(
    function: Callable[..., Tensor],
    images: Any,
    device: torch.device,
    size: int,
    *tensors: Tensor,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, int]:
    """Apply a function to `size` images at a time, and to half as many whenever memory runs out.

    Args:
        function: takes images (B, ...) on the device, and the same rows of each of `tensors`;
            returns one row per image.
        images: (N, ...), a tensor or a sequence that stands for one.
        device: where the images are moved.
        size: images at a time.
        tensors: (N, ...), with one row per image.
        progress: called after every batch with the number of images so far and of all images.

    Returns:
        the concatenated results, (N, ...), and the number of images at a time at the end.

    Raises:
        UserError: there is not enough memory for one image.
    """
    results: Tensor | None = None
    done = 0

    def add(batch: Any) -> None:
        nonlocal results
        rows = (tensor[done : done + len(batch)].to(device) for tensor in tensors)
        output = function(batch.to(device), *rows)
        if results is None:  # allocated as a whole: concatenating would need twice the memory
            results = output.new_empty((len(images), *output.shape[1:]))
        results[done : done + len(batch)] = output

    while done < len(images) or results is None:
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
    return results, size


class Encoder(Protocol):
    """An object with a model, and a batch size that fits into memory."""

    model: Any

    def in_batches(self, function: Callable[..., Tensor], images: Any) -> Tensor:
        """Apply a function to a number of images at a time; to fewer once memory runs out."""


@torch.no_grad()
def encode_images(encoder: Encoder, images: Any, class_tokens: int = 0) -> Tensor:
    """Encode any number of images with the current weights, in the encoder's batches.

    Args:
        encoder: a strategy, or the `FrozenImages` of a command.
        images: (N, ...), a tensor or a sequence that stands for one.
        class_tokens: blocks whose class tokens follow; see `CLIPClassifier.image_rows`.

    Returns:
        (N, d), unit length, on the CPU; with class tokens the longer rows.

    Raises:
        UserError: there is not enough memory for one image.
    """
    model = encoder.model
    if class_tokens:
        return encoder.in_batches(lambda batch: model.image_rows(batch, class_tokens).cpu(), images)
    return encoder.in_batches(lambda batch: model.image_features(batch).cpu(), images)
