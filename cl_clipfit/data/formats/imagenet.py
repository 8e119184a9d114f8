"""ImageNet: its 1,000 classes in label order, and image folders named by WordNet id.

Deng et al. 2009; Russakovsky et al. 2015. Class names are those that CLIP's authors chose, as
open_clip ships them; two of them, "missile" and "sunglasses", name two classes each.
"""

import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from cl_clipfit.data.fetch.archives import Located
from cl_clipfit.data.fetch.download import cache_folder
from cl_clipfit.data.images.lazy import ImageFiles
from cl_clipfit.data.source import DataRequest, ImageSet, Source
from cl_clipfit.errors import UserError, is_file, nearest
from cl_clipfit.storage.files import read_bytes

TEMPLATES = ("a photo of a {}.",)
BY_HAND = (
    "ImageNet cannot be downloaded freely: with an account at https://image-net.org download"
    " ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, and unpack"
    " them to train/WNID/* and val/WNID/*, as torchvision.datasets.ImageNet(FOLDER, 'train') and"
    " (FOLDER, 'val') do"
)


def unpacked_by_hand(
    home: str, expected: Sequence[str], below: str, request: DataRequest, help: str
) -> Located:
    """Find a data set that has to be downloaded and unpacked by hand.

    Args:
        home: folder in the cache that is searched without `--data-dir`.
        expected: paths that exist in it.
        below: subfolder of the named folder that may hold it instead.
        request: what the command says about data.
        help: where to download it, and how to unpack it.

    Raises:
        UserError: it is not there.
    """
    given = request.data_dir or cache_folder() / home
    for folder in (given, given / below):
        if all(is_file(folder / path, or_folder=True) for path in expected):
            request.note(f"{home}: the files in {folder} are used unverified; results say so")
            return Located(folder, {"kind": "folder", "verified": False})
    raise UserError(
        f"{given} does not hold {', '.join(expected)}. {help}; then name the folder with --data-dir"
    )


def imagenet_tree(request: DataRequest) -> Located:
    """Find an unpacked ImageNet tree, which may be in a folder `images`, as in CoOp."""
    return unpacked_by_hand("imagenet", ["train", "val"], "images", request, BY_HAND)


@cache
def class_names() -> Mapping[str, str]:
    """Return the 1,000 class names by WordNet id, in label order, which is the order of the ids."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    return dict(zip(ImageNetInfo().label_names(), IMAGENET_CLASSNAMES, strict=True))


def find_classes(names: Sequence[str]) -> list[str]:
    """Return the WordNet ids of classes given by id or by name, in the order given.

    Raises:
        UserError: a name is unknown or stands for two classes, or a class is named twice.
    """
    by_name: dict[str, list[str]] = {}
    for wnid, name in class_names().items():
        by_name.setdefault(name.lower(), []).append(wnid)
    chosen: dict[str, None] = {}
    for name in names:
        wnids = [name] if name in class_names() else by_name.get(name.lower(), [])
        if not wnids:
            raise UserError(f"no class of ImageNet is called '{name}'. {nearest(name, by_name)}")
        if len(wnids) > 1:
            raise UserError(f"'{name}' names two classes of ImageNet: say {' or '.join(wnids)}")
        if wnids[0] in chosen:
            raise UserError(f"the list of classes names {wnids[0]} twice")
        chosen[wnids[0]] = None
    return list(chosen)


def _scan(folder: Path, folders: bool) -> list[str]:
    """Return the names of subfolders or of images, sorted, without hidden ones."""
    try:
        with os.scandir(folder) as entries:  # names and kinds in one pass, without a stat per file
            return sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".")
                and (entry.is_dir() if folders else entry.name.lower().endswith(IMG_EXTENSIONS))
            )
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror or error}") from error


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted.

    Raises:
        UserError: it cannot be read.
    """
    return _scan(folder, folders=True)


def read_folders(root: Path, folders: Sequence[str], inside: str = "") -> ImageSet:
    """List `root`/FOLDER/`inside`/*, one folder per class; files are not read.

    Args:
        root: holds the folders.
        folders: their names, in label order.
        inside: folder within each.

    Returns:
        image files, sorted by label and file name.

    Raises:
        UserError: a folder cannot be read or holds no images.
    """
    paths: list[Path] = []
    counts: list[int] = []
    for name in folders:
        folder = root / name / inside
        files = _scan(folder, folders=False)
        if not files:
            raise UserError(f"{folder} holds no images: unpack the data set again")
        paths.extend(folder / file for file in files)
        counts.append(len(files))
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    return ImageSet(ImageFiles(tuple(paths)), labels)


def read_table(file: Path, columns: int, separator: str | None = None) -> list[list[str]]:
    """Read the lines of a text file; the last column takes the rest of the line.

    Raises:
        UserError: it cannot be read as text, is far larger than any such file, or a line has too
            few columns.
    """
    try:
        file.stat()  # `read_bytes` would report a missing file as a missing part of a run
        lines = read_bytes(file).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as text: {error}") from error
    rows = [line.strip().split(separator, columns - 1) for line in lines if line.strip()]
    for number, row in enumerate(rows, start=1):
        if len(row) < columns:
            raise UserError(f"{file}, entry {number}: expected {columns} columns, got {len(row)}")
    return rows


def listed(paths: Sequence[Path], labels: Sequence[int], where: str) -> ImageSet:
    """Return the image files that a table of the data set names.

    Raises:
        UserError: one of them does not exist.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"{where} names {len(missing)} images that are missing, the first is {missing[0]}"
        )
    return ImageSet(ImageFiles(tuple(paths)), torch.tensor(labels, dtype=torch.int64))


def read_tree(
    root: Path, wnids: Sequence[str], help: str, partial: bool = False
) -> tuple[list[str], ImageSet, ImageSet]:
    """List `root`/train/WNID/* and `root`/val/WNID/*.

    Args:
        root: holds train and val.
        wnids: WordNet ids of the requested classes, in label order.
        help: what to do if some are missing.
        partial: continue with the classes that are present.

    Returns:
        the ids that are present, training images, and validation images; labels count these ids.

    Raises:
        UserError: none of the classes is present, or some are missing and `partial` is False.
    """
    train, val = (set(subfolders(root / part)) for part in ("train", "val"))
    held = [wnid for wnid in wnids if wnid in train and wnid in val]
    if not train & val & set(class_names()):
        raise UserError(f"{root} holds no images in train/WNID/* and val/WNID/*: {BY_HAND}")
    if not held or (len(held) < len(wnids) and not partial):
        missing = [wnid for wnid in wnids if wnid not in train or wnid not in val]
        raise UserError(
            f"{root}: train or val has no folder for {len(missing)} of {len(wnids)} classes, the"
            f" first is {missing[0]}; {help}"
        )
    return held, read_folders(root / "train", held), read_folders(root / "val", held)


def held_classes(folder: Path, whole: int, name: str, request: DataRequest) -> list[str]:
    """Return the WordNet ids that a folder has subfolders for, sorted; note if some are missing.

    Args:
        folder: holds one folder per class.
        whole: number of classes of the data set.
        name: name of the scenario.
        request: notified of missing classes.

    Raises:
        UserError: there is no class, more than `whole`, or one that is not in ImageNet.
    """
    wnids = [wnid for wnid in subfolders(folder) if re.fullmatch(r"n\d{8}", wnid)]
    unknown = [wnid for wnid in wnids if wnid not in class_names()]
    if unknown:
        raise UserError(f"{folder / unknown[0]}: {unknown[0]} is not a class of ImageNet-1k")
    if not 0 < len(wnids) <= whole:
        raise UserError(f"{folder} has {len(wnids)} classes in WNID/*, {name} has {whole}")
    if len(wnids) < whole:
        request.note(f"{name}: {folder} has only {len(wnids)} of {whole} classes")
    return wnids


def probe(names: Sequence[str], test: ImageSet, origin: Mapping[str, Any]) -> Source:
    """Return a data set of test images only."""
    nothing = ImageSet(ImageFiles(()), torch.empty(0, dtype=torch.int64))
    return Source(tuple(names), TEMPLATES, nothing, test, {**origin, "classes": len(names)})


def wordnet_probe(
    located: Located, folder: str, whole: int, name: str, request: DataRequest
) -> Source:
    """Return the images in `folder`/WNID/* as test images of the classes that are present.

    Labels count these classes by WordNet id: the usual protocol of ImageNet-A and -R ranks only
    their 200 classes (Hendrycks et al. 2021).

    Args:
        located: the data set.
        folder: folder in it.
        whole: number of classes of the data set.
        name: name of the scenario.
        request: notified of missing classes.
    """
    root = located.folder / folder
    wnids = held_classes(root, whole, name, request)
    return probe([class_names()[w] for w in wnids], read_folders(root, wnids), located.origin)
