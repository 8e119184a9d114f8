"""Data sets that torchvision can read: their files and labels, listed without decoding images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import random_split
from torchvision.datasets import Caltech101

from cl_clipfit.data.images.lazy import ImageFiles
from cl_clipfit.data.source import ImageSet
from cl_clipfit.errors import UserError

DRAWN_SHARE = 0.8  # training share of the images, for data sets without an official split
Named = tuple[tuple[str, ...], ImageSet]


def open_set(kind: Callable[..., Any], folder: Path, **part: Any) -> Any:
    """Return an instance of a torchvision data set class for an unpacked folder.

    Args:
        kind: the class.
        folder: its `root`.
        part: which part, as the class calls it.

    Raises:
        UserError: the folder is not what the class expects.
    """
    try:
        return kind(str(folder), download=False, **part)
    except Exception as error:  # a damaged file may raise anything
        reason = " ".join(str(error).partition(" You can use download=True")[0].split())
        raise UserError(
            f"{folder} cannot be read as torchvision's {kind.__name__}"
            f" ({type(error).__name__}: {reason[:200]}): unpack its archives again, or name another"
            " copy with --data-dir"
        ) from error


def _listing(data: Any) -> tuple[Sequence[str], list[Path], list[int]]:
    """Return class names, files and labels, whatever a torchvision class calls them."""
    if isinstance(data, Caltech101):
        folders = [Path(data.root, "101_ObjectCategories", name) for name in data.categories]
        rows = zip(data.y, data.index, strict=True)
        files = [folders[label] / f"image_{number:04d}.jpg" for label, number in rows]
        return data.categories, files, data.y
    for name in ("samples", "_samples"):
        if hasattr(data, name):
            samples = getattr(data, name)
            return data.classes, [Path(f) for f, _ in samples], [int(label) for _, label in samples]
    files = data._image_files if hasattr(data, "_image_files") else data._images
    # Flowers102 of torchvision 0.21 has no names
    names = getattr(data, "classes", None) or [str(label) for label in sorted(set(data._labels))]
    return names, [Path(file) for file in files], data._labels


def list_images(kind: Callable[..., Any], folder: Path, classes: int, **part: Any) -> Named:
    """List one part of a data set.

    Args:
        kind: a torchvision class.
        folder: its `root`.
        classes: number of classes of the data set.
        part: which part, as the class calls it.

    Returns:
        torchvision's class names by label, and the files with labels int64 (N,).

    Raises:
        UserError: the folder cannot be read, or does not hold images of all classes.
    """
    names, files, labels = _listing(open_set(kind, folder, **part))
    if len(names) != classes or set(labels) != set(range(classes)):
        raise UserError(
            f"{folder} is not a complete {kind.__name__}: it lists {len(files):,} images of"
            f" {len(set(labels))} classes, expected {classes} classes: unpack its archives again"
        )
    images = ImageFiles(tuple(files))
    return tuple(names), ImageSet(images, torch.tensor(labels, dtype=torch.int64))


def official_split(
    kind: Callable[..., Any], folder: Path, classes: int, train: str = "train", test: str = "test"
) -> tuple[tuple[str, ...], ImageSet, ImageSet]:
    """List a data set that has an official split, see `list_images`.

    Args:
        kind: a torchvision class.
        folder: its `root`.
        classes: number of classes of the data set.
        train: what the class calls the training images.
        test: what the class calls the test images.

    Returns:
        class names, training images, test images.

    Raises:
        UserError: as `list_images`, or the class names of the two parts differ.
    """
    names, training = list_images(kind, folder, classes, split=train)
    others, testing = list_images(kind, folder, classes, split=test)
    if names != others:
        wrong = next(a for a, b in zip(names, others, strict=True) if a != b)
        raise UserError(f"{folder}: class '{wrong}' of '{train}' has another name in '{test}'")
    return names, training, testing


def drawn_split(
    kind: Callable[..., Any], folder: Path, classes: int, seed: int
) -> tuple[tuple[str, ...], ImageSet, ImageSet]:
    """List a data set that has no official split, and draw 80% of all images for training.

    The draw is that of ZSCL (Zheng et al. 2023, arXiv 2303.06628): `torch.utils.data.random_split`
    over all images in the order of their paths. This is torchvision's order too, except for SUN397,
    where torchvision uses the order of the file system.

    Args:
        kind: a torchvision class.
        folder: its `root`.
        classes: number of classes of the data set.
        seed: seed of the draw.

    Returns:
        class names, training images, test images, in the order in which they are drawn.

    Raises:
        UserError: as `list_images`.
    """
    names, data = list_images(kind, folder, classes)
    order: Any = sorted(range(len(data)), key=lambda i: data.images.paths[i])
    count = int(DRAWN_SHARE * len(data))
    generator = torch.Generator().manual_seed(seed)
    parts = random_split(order, [count, len(data) - count], generator)
    training, testing = (data.subset(torch.tensor([order[i] for i in p.indices])) for p in parts)
    return names, training, testing


def grey_images(kind: Callable[..., Any], folder: Path, train: bool) -> ImageSet:
    """Read grey images into memory from MNIST or a data set of the same format.

    Args:
        kind: torchvision's MNIST, or a subclass.
        folder: its `root`.
        train: True for the training images, False for the test images.

    Returns:
        images uint8 (N, 3, 28, 28) with three equal channels.

    Raises:
        UserError: a file is damaged.
    """
    data = open_set(kind, folder, train=train)
    count, classes = len(data.data), range(len(data.classes))
    if len(data.targets) != count or not set(data.targets.tolist()) <= set(classes):
        raise UserError(
            f"{folder}: {kind.__name__} has {count:,} images and {len(data.targets):,} labels,"
            f" expected one from 0 to {classes[-1]} per image: unpack its archives again"
        )
    return ImageSet(data.data[:, None].expand(-1, 3, -1, -1).contiguous(), data.targets)
