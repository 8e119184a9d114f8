"""Images in folders, one folder per class."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.functional import pil_to_tensor

from cl_clipfit.config.text_files import has_control
from cl_clipfit.data.images.decode import open_image
from cl_clipfit.data.images.lazy import ImageFiles
from cl_clipfit.data.source import ImageSet
from cl_clipfit.errors import UserError, is_file, nearest
from cl_clipfit.storage.files import reading

SUFFIXES = (*IMG_EXTENSIONS, ".gif")


def plain_name(folder: str) -> str:
    """Return the class name for a folder: "maple_tree" is "maple tree"."""
    return " ".join(folder.replace("_", " ").split())


def data_name(path: Path) -> str:
    """Return the name that tells a user's data set from others: its folder's or file's.

    That of a snapshot in the Hugging Face cache, .../datasets--ORG--NAME/snapshots/HASH, is NAME.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - a link keeps its name
    if path.parent.name == "snapshots":
        return path.parents[1].name.rpartition("--")[2]
    return path.stem if path.is_file() else path.name


def read_known_classes(folder: Path, names: Sequence[str]) -> ImageSet:
    """Read `folder`/CLASS/* for classes known in advance; all images have one size.

    Args:
        folder: holds one folder per class.
        names: class names in label order.

    Returns:
        images uint8 (N, 3, H, W), in the order of class and file names.

    Raises:
        UserError: an unknown class, an unreadable image, or images of several sizes.
    """
    _, files, labels = list_classes(folder, names)
    images: list[Tensor] = []
    for file in files.paths:
        images.append(read_image(file))
        if images[-1].shape != images[0].shape:
            sizes = [f"{i.shape[2]}x{i.shape[1]}" for i in (images[0], images[-1])]
            raise UserError(f"{file} has {sizes[1]} pixels, the others have {sizes[0]}")
    return ImageSet(torch.stack(images), labels)


def read_image(file: Path) -> Tensor:
    """Decode an image file to uint8 (3, H, W).

    Raises:
        UserError: it cannot be read.
    """
    return pil_to_tensor(open_image(file))


def list_classes(
    folder: Path, names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], ImageFiles, Tensor]:
    """List the images in `folder`/CLASS/**, at any depth, without hidden files.

    Links to files and folders are followed, wherever they point.

    Args:
        folder: holds one folder per class.
        names: class names in label order; default: those of the folders, sorted as torchvision's
            `ImageFolder` sorts them.

    Returns:
        names in label order; the files, by class folder and then by name, 9 before 10; and their
        labels int64 (N,).

    Raises:
        UserError: there are no classes, or a class is unknown, repeated or without images.
    """
    folders = visible_folders(folder)
    if not folders:
        raise UserError(_no_classes(folder))
    names = tuple(names or (path.name for path in folders))
    labels_of = {plain_name(name): label for label, name in enumerate(names)}
    paths: list[Path] = []
    labels: list[int] = []
    taken: dict[int, Path] = {}
    for path in folders:
        name = plain_name(path.name)
        if not name or has_control(path.name):
            raise UserError(f"{str(path)!a}: the name of a class folder must be readable")
        if name not in labels_of:
            raise UserError(f"{path}: no class is called '{name}'. {nearest(name, labels_of)}")
        other = taken.setdefault(labels_of[name], path)
        if other != path:
            raise UserError(
                f"{other} and {path} are the same class, '{name}': merge or rename them"
            )
        files = images_below(path)
        if not files:
            raise UserError(
                f"{path} holds no images ({' '.join(SUFFIXES)}): add some or remove the folder"
            )
        paths += files
        labels += [labels_of[name]] * len(files)
    return names, ImageFiles(tuple(paths)), torch.tensor(labels)


def loose_images(folder: Path) -> list[Path]:
    """Return the images directly in a folder of class folders, which belong to no class."""
    return [folder / entry.name for entry in _entries(folder) if _is_image(entry)]


def _no_classes(folder: Path) -> str:
    if not loose_images(folder):
        return f"{folder} holds no images: expected {folder.name}/CLASS/*.png"
    return (
        f"{folder} holds images but no folders of classes, as in {folder.name}/CLASS/*.png: if it"
        " is the folder of one class, name the folder above it"
    )


def visible_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones.

    Raises:
        UserError: it cannot be read, or holds a link to a missing folder.
    """
    entries = _entries(folder)
    for entry in filter(_is_lost, entries):
        raise UserError(
            f"{entry.path} is a link whose target is missing: restore the target or remove the link"
        )
    return sorted(folder / entry.name for entry in entries if _is_folder(entry))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is visible in a folder, in natural order."""
    with reading(folder), os.scandir(folder) as scan:
        visible = [e for e in scan if not e.name.startswith(".") and e.name != "__MACOSX"]
    return sorted(visible, key=lambda entry: _natural(entry.name))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circle of links, or a link into a folder that may not be read
        return False


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(SUFFIXES) and not _is_folder(entry)


def _is_lost(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a link to something missing that was probably a folder."""
    is_broken = entry.is_symlink() and not is_file(entry.path, or_folder=True)
    return is_broken and not Path(entry.name).suffix


def _natural(name: str) -> tuple[list[str | int], str]:
    """Return a key that sorts "image 9" before "image 10"."""
    parts = re.split(r"([0-9]+)", name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def images_below(folder: Path) -> list[Path]:
    """Return the images below a folder; links may form circles, so each is visited once.

    A folder inside it that cannot be read counts as an image that cannot be read.
    """
    files: list[Path] = []
    visited = {identity(folder)}

    def walk(folder: Path, entries: list[os.DirEntry[str]]) -> None:
        for entry in entries:
            path = folder / entry.name
            if not _is_folder(entry):
                files.extend([path] * (_is_image(entry) or _is_lost(entry)))
                continue
            try:
                key, inside = identity(path), _entries(path)
            except UserError:
                files.append(path)
                continue
            if key not in visited:
                visited.add(key)
                walk(path, inside)

    walk(folder, _entries(folder))
    return files


def identity(path: Path) -> tuple[int, int]:
    """Return what identifies a file or folder, whichever link it is reached by.

    Raises:
        UserError: it cannot be read.
    """
    with reading(path):
        status = path.stat()
    return status.st_dev, status.st_ino
