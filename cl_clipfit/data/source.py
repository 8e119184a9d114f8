"""Labelled images in memory, and what a scenario file returns."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_clipfit.config.text_files import has_control
from cl_clipfit.data.images.lazy import images_digest
from cl_clipfit.errors import UserError

_LABELS = 2**32  # more than any data set has
Templates = tuple[str, ...] | tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ImageSet:
    """Images and their labels.

    Attributes:
        images: uint8 (N, 3, H, W); or `ImageFiles`, which are decoded later; or float (N, d),
            features computed elsewhere, which stand for images.
        labels: int64 (N,).
        tasks: int64 (N,), the task of each image if the data set defines it; None if the classes
            determine it.
    """

    images: Any  # Tensor | ImageFiles | LazyImages
    labels: Tensor
    tasks: Tensor | None = None

    def __post_init__(self) -> None:
        images = self.images
        if isinstance(images, Tensor) and not (
            (images.dtype == torch.uint8 and images.dim() == 4 and images.shape[1] == 3)
            or (images.is_floating_point() and images.dim() == 2)
        ):
            kind = f"{images.dtype} {tuple(images.shape)}"
            raise ValueError(f"images must be uint8 (N, 3, H, W), or float (N, d), not {kind}")
        for name, values in (("labels", self.labels), ("tasks", self.tasks)):
            if values is None:
                continue
            if values.dtype != torch.int64 or values.shape != (len(images),):
                kind = f"{values.dtype} {tuple(values.shape)}"
                raise ValueError(f"{name} of {len(images)} images must be int64 (N,), not {kind}")

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> "ImageSet":
        """Select samples by index or by a mask (N,)."""
        tasks = None if self.tasks is None else self.tasks[index]
        return replace(self, images=self.images[index], labels=self.labels[index], tasks=tasks)

    def none(self) -> "ImageSet":
        """Return a set of this kind without any image."""
        return self.subset(torch.zeros(len(self), dtype=torch.bool))


def _ignore(*details: Any) -> None:
    """Ignore a report."""


def nested(name: str, folder: Path | None) -> "Source":
    """Refuse to nest scenarios that are made from other scenarios.

    Raises:
        UserError: always.
    """
    raise UserError(f"{name}: a scenario made from others cannot be part of another one")


@dataclass(frozen=True)
class DataRequest:
    """What a command says about where data is, for a scenario's `load`.

    Attributes:
        data_dir: file or folder given with `--data-dir`; None without the option.
        unverified: accept files that are not the official ones.
        note: show one line to the user.
        progress: report a download: a label, the bytes so far, and the total if it is known.
        count: report images read: a label, the number so far, and the total.
        other: load the data of another scenario, for streams made from several: its name, and its
            `data_dir` or None.
        test_only: only test images will be used, so a scenario may leave its training images out.
    """

    data_dir: Path | None = None
    unverified: bool = False
    note: Callable[[str], None] = _ignore
    progress: Callable[[str, int, int | None], None] = _ignore
    count: Callable[[str, int, int], None] = _ignore
    other: Callable[[str, Path | None], "Source"] = nested
    test_only: bool = False

    def folder_of(self, name: str) -> Path | None:
        """Return the folder of a data set inside `--data-dir`; None if there is none."""
        folder = self.data_dir / name if self.data_dir else None
        return folder if folder and folder.is_dir() else None


@dataclass(frozen=True)
class Source:
    """One data set, before it is cut into tasks.

    Attributes:
        class_names: names in the order of the original labels 0..K-1; they may repeat.
        templates: prompt templates with one "{}", or a tuple of them per class.
        train: training images with original labels.
        test: test images with original labels.
        origin: the kind of files it was read from, and "verified": whether they are the official
            ones; recorded in `result.json`.
        task_names: the tasks, if the data set assigns images to them (`ImageSet.tasks`).
        trained_tasks: how many of these are trained; the others are only tested. Default all.
        spare: lists images of neither part, which a split file may name; None if there are none.
        text: (K, d), text features computed elsewhere, if the images are features too.
        logit_scale: with `text`, the factor on cosine similarities.
    """

    class_names: tuple[str, ...]
    templates: Templates
    train: ImageSet
    test: ImageSet
    origin: Mapping[str, Any] = field(default_factory=dict)
    task_names: tuple[str, ...] = ()
    trained_tasks: int | None = None
    spare: Callable[[], ImageSet] | None = None
    text: Tensor | None = None
    logit_scale: float = 100.0

    def __post_init__(self) -> None:
        for key, value in self.origin.items():
            if not isinstance(value, str | int | float | bool | None):
                raise ValueError(f"origin['{key}'] must be text, a number or true/false")
        for name in (*self.class_names, *self.task_names):
            if has_control(name):
                raise UserError(f"the name {name!r} contains control characters: rename it")
        for kind, data in (("training", self.train), ("test", self.test)):
            _check_range(f"{kind} labels", data.labels, len(self.class_names), "class names")
            if (data.tasks is not None) != bool(self.task_names):
                raise ValueError(f"task_names and the tasks of the {kind} images go together")
            if data.tasks is not None:
                _check_range(f"tasks of {kind} images", data.tasks, len(self.task_names), "names")

    @cached_property
    def sha256(self) -> str:
        """Return a hash of names, templates, images and labels.

        Files contribute their bytes, or their names and sizes if they exceed `HASHED_BYTES` in all.
        """
        digest = hashlib.sha256(repr((self.class_names, self.templates)).encode())
        if self.task_names or self.text is not None:
            digest.update(repr((self.task_names, self.trained_tasks, self.logit_scale)).encode())
        for data in (self.train, self.test):
            images_digest(data.images, digest)
            for values in (data.labels, data.tasks):
                if values is not None:
                    digest.update(values.contiguous().view(torch.uint8).numpy().data)
        if self.text is not None:
            digest.update(self.text.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _check_range(what: str, values: Tensor, count: int, names: str) -> None:
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < count:
        span = f"{int(values.min())} to {int(values.max())}"
        raise ValueError(
            f"{what} run from {span}, with {count} {names} they must be 0 to {count - 1}"
        )


def _shuffled_classes(data: ImageSet, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Yield every class with the indices of its samples, shuffled by a separate generator.

    If the data set assigns images to tasks, yield every class of every task.
    """
    generator = torch.Generator().manual_seed(seed)
    groups = data.labels if data.tasks is None else data.labels + data.tasks * _LABELS
    for group in groups.unique().tolist():
        members = (groups == group).nonzero().flatten()
        yield group % _LABELS, members[torch.randperm(len(members), generator=generator)]


def draw_share(data: ImageSet, share: float, seed: int, lone: Callable[[int], str]) -> Tensor:
    """Draw a share of every class, at least one image but not all.

    Args:
        data: images and labels.
        share: share to draw, between 0 and 1.
        seed: seed of the draw.
        lone: returns the error message for a class, by label, that has only one image.

    Returns:
        mask (N,).

    Raises:
        UserError: a class has only one image.
    """
    held = torch.zeros(len(data), dtype=torch.bool)
    for label, members in _shuffled_classes(data, seed):
        if len(members) < 2:
            raise UserError(lone(label))
        count = min(len(members) - 1, max(1, round(share * len(members))))
        held[members[:count]] = True
    return held


def hold_out(data: ImageSet, fraction: float, names: Sequence[str]) -> tuple[ImageSet, ImageSet]:
    """Hold out a share of every class, at least one image, by a draw with a fixed seed.

    Args:
        data: images and labels.
        fraction: the share to hold out, between 0 and 1.
        names: class names by label, for the message.

    Returns:
        the remaining samples, and those held out.

    Raises:
        UserError: a class has only one image.
    """

    def lone(label: int) -> str:
        return f"--validation {fraction}: '{names[label]}' has only one training image"

    held = draw_share(data, fraction, 0, lone)
    return data.subset(~held), data.subset(held)


def limit_images(data: ImageSet, limit: int) -> ImageSet:
    """Keep at most `limit` images per class, drawn with a fixed seed, in their original order."""
    chosen = [members[:limit] for _, members in _shuffled_classes(data, seed=0)]
    return data.subset(torch.cat(chosen).sort().values) if chosen else data


def few_shots(data: ImageSet, shots: int, seed: int, names: Sequence[str]) -> ImageSet:
    """Draw `shots` samples per class with a separate generator, in their original order.

    Args:
        data: images and labels.
        shots: samples per class.
        seed: seed of the draw.
        names: class names by label, for the message.

    Raises:
        UserError: a class has fewer samples.
    """
    chosen = []
    for label, members in _shuffled_classes(data, seed):
        if len(members) < shots:
            raise UserError(
                f"--shots {shots}: '{names[label]}' has only {len(members)} training images"
            )
        chosen.append(members[:shots])
    return data.subset(torch.cat(chosen).sort().values) if chosen else data
