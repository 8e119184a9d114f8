"""Data sets that torchvision reads: their files and labels, listed without decoding an image."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import random_split
from torchvision.datasets import Caltech101

from cl_clipfit.data.images.lazy import ImageFiles
from cl_clipfit.data.source import ImageSet
from cl_clipfit.errors import UserError

DRAWN_SHARE = 0.8  # of the images train, where a data set has no split of its own
Named = tuple[tuple[str, ...], ImageSet]


def open_set(kind: Callable[..., Any], folder: Path, **part: Any) -> Any:
    """Return an object of a torchvision data set class over an unpacked folder.

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
    """Return class names, files and labels, wherever a torchvision class keeps them."""
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
        classes: how many classes the data set has.
        part: which part, as the class calls it.

    Returns:
        class names by label as torchvision has them, and the files with labels int64 (N,).

    Raises:
        UserError: the folder cannot be read, or does not hold images of all classes.
    """
    names, files, labels = _listing(open_set(kind, folder, **part))
    if len(names) != classes or set(labels) != set(range(classes)):
        raise UserError(
            f"{folder} is no whole {kind.__name__}: {len(files):,} images of {len(set(labels))}"
            f" classes are listed, expected {classes} classes: unpack its archives again"
        )
    images = ImageFiles(tuple(files))
    return tuple(names), ImageSet(images, torch.tensor(labels, dtype=torch.int64))


def official_split(
    kind: Callable[..., Any], folder: Path, classes: int, train: str = "train", test: str = "test"
) -> tuple[tuple[str, ...], ImageSet, ImageSet]:
    """List a data set that comes divided, see `list_images`.

    Args:
        kind: a torchvision class.
        folder: its `root`.
        classes: how many classes the data set has.
        train: what the class calls the training images.
        test: what it calls the test images.

    Returns:
        class names, training images, test images.

    Raises:
        UserError: see `list_images`; or the two parts name their classes differently.
    """
    names, training = list_images(kind, folder, classes, split=train)
    others, testing = list_images(kind, folder, classes, split=test)
    if names != others:
        wrong = next(a for a, b in zip(names, others, strict=True) if a != b)
        raise UserError(f"{folder}: class '{wrong}' of '{train}' is another one in '{test}'")
    return names, training, testing


def drawn_split(
    kind: Callable[..., Any], folder: Path, classes: int, seed: int
) -> tuple[tuple[str, ...], ImageSet, ImageSet]:
    """List a data set that comes undivided, and draw 80% of all images for training.

    As ZSCL (Zheng et al. 2023, arXiv 2303.06628) does: `torch.utils.data.random_split` over all
    images in the order of their paths (torchvision's own order, but for SUN397, which it lists as
    the file system does).

    Args:
        kind: a torchvision class.
        folder: its `root`.
        classes: how many classes the data set has.
        seed: of the draw.

    Returns:
        class names, training images, test images, in the order they are drawn.

    Raises:
        UserError: see `list_images`.
    """
    names, data = list_images(kind, folder, classes)
    order: Any = sorted(range(len(data)), key=lambda i: data.images.paths[i])
    count = int(DRAWN_SHARE * len(data))
    generator = torch.Generator().manual_seed(seed)
    parts = random_split(order, [count, len(data) - count], generator)
    training, testing = (data.subset(torch.tensor([order[i] for i in p.indices])) for p in parts)
    return names, training, testing


def grey_images(kind: Callable[..., Any], folder: Path, train: bool) -> ImageSet:
    """Read MNIST or a data set of its format, grey images in memory.

    Args:
        kind: torchvision's MNIST, or a subclass.
        folder: its `root`.
        train: training or test images.

    Returns:
        images uint8 (N, 3, 28, 28), three equal channels.

    Raises:
        UserError: a file is damaged.
    """
    data = open_set(kind, folder, train=train)
    count, known = len(data.data), range(len(data.classes))
    if len(data.targets) != count or not set(data.targets.tolist()) <= set(known):
        raise UserError(
            f"{folder}: {kind.__name__} has {count:,} images and {len(data.targets):,} labels,"
            f" expected one from 0 to {known[-1]} for each: unpack its archives again"
        )
    return ImageSet(data.data[:, None].expand(-1, 3, -1, -1).contiguous(), data.targets)
