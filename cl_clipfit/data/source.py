"""Labelled images in memory, and what a scenario file returns."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_clipfit.errors import UserError


@dataclass(frozen=True)
class ImageSet:
    """Images and their labels.

    Attributes:
        images: uint8 (N, 3, H, W).
        labels: int64 (N,).
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or self.images.shape[1] != 3:
            kind = f"{self.images.dtype} {tuple(self.images.shape)}"
            raise ValueError(f"images must be uint8 (N, 3, H, W), not {kind}")
        if self.labels.dtype != torch.int64 or self.labels.shape != (len(self.images),):
            kind = f"{self.labels.dtype} {tuple(self.labels.shape)}"
            raise ValueError(f"labels of {len(self.images)} images must be int64 (N,), not {kind}")

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> "ImageSet":
        """Select samples by index or by a mask (N,)."""
        return ImageSet(self.images[index], self.labels[index])


def _ignore(*details: Any) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class DataRequest:
    """What a command says about where data is, for a scenario's `load`.

    Attributes:
        data_dir: file or folder given with `--data-dir`; None where none is.
        unverified: accept files that are not the official ones.
        note: say one line to the user.
        progress: told of a download: a label, the bytes so far, the bytes in all where known.
    """

    data_dir: Path | None = None
    unverified: bool = False
    note: Callable[[str], None] = _ignore
    progress: Callable[[str, int, int | None], None] = _ignore


@dataclass(frozen=True)
class Source:
    """One data set, before it is cut into tasks.

    Attributes:
        class_names: names in the order of the original labels 0..K-1.
        templates: prompt templates with one "{}".
        train: training images with original labels.
        test: test images with original labels.
        origin: what kind of files it came from, and "verified": whether they are the official
            ones; kept in `result.json`.
    """

    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, value in self.origin.items():
            if not isinstance(value, str | int | float | bool | None):
                raise ValueError(f"origin['{key}'] must be text, a number or true/false")
        classes = len(self.class_names)
        for kind, data in (("training", self.train), ("test", self.test)):
            labels = data.labels
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
                span = f"{int(labels.min())} to {int(labels.max())}"
                raise ValueError(
                    f"{kind} labels run from {span}, with {classes} class names they must be"
                    f" 0 to {classes - 1}"
                )

    @cached_property
    def sha256(self) -> str:
        """Hash over names, templates, images and labels."""
        digest = hashlib.sha256(repr((self.class_names, self.templates)).encode())
        for data in (self.train, self.test):
            digest.update(f"{tuple(data.images.shape)}".encode())
            digest.update(data.images.contiguous().view(-1).numpy().data)
            digest.update(data.labels.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _shuffled_classes(data: ImageSet, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Yield every class with the indices of its samples, shuffled by a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    for label in data.labels.unique().tolist():
        members = (data.labels == label).nonzero().flatten()
        yield label, members[torch.randperm(len(members), generator=generator)]


def hold_out(data: ImageSet, fraction: float, names: Sequence[str]) -> tuple[ImageSet, ImageSet]:
    """Split off a share of every class, at least one image, by a fixed draw.

    Args:
        data: images and labels.
        fraction: the share, between 0 and 1.
        names: class names by label, for the message.

    Returns:
        the rest, and what was held out.

    Raises:
        UserError: a class with a single image.
    """
    held = torch.zeros(len(data), dtype=torch.bool)
    for label, members in _shuffled_classes(data, seed=0):
        if len(members) < 2:
            raise UserError(
                f"--validation {fraction}: '{names[label]}' has only one training image"
            )
        count = min(len(members) - 1, max(1, round(fraction * len(members))))
        held[members[:count]] = True
    return data.subset(~held), data.subset(held)


def few_shots(data: ImageSet, shots: int, seed: int, names: Sequence[str]) -> ImageSet:
    """Draw `shots` samples of each class with a generator of its own; order within is kept.

    Args:
        data: images and labels.
        shots: samples a class.
        seed: of the draw.
        names: class names by label, for the message.

    Raises:
        UserError: a class with fewer samples.
    """
    chosen = []
    for label, members in _shuffled_classes(data, seed):
        if len(members) < shots:
            raise UserError(
                f"--shots {shots}: '{names[label]}' has only {len(members)} training images"
            )
        chosen.append(members[:shots])
    return data.subset(torch.cat(chosen).sort().values)
