"""Split images into training and test images, by a file or by a random draw."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cl_clipfit.data.formats.folders import plain_name
from cl_clipfit.data.images.lazy import ImageFiles
from cl_clipfit.data.source import ImageSet, Source
from cl_clipfit.errors import UserError
from cl_clipfit.storage.files import read_bytes, reading, sha256

FORMS = (
    '{"train": [[PATH, LABEL, CLASS NAME], ...], "val": ..., "test": ...}, or'
    ' {"train": [PATH, ...], "test": [PATH, ...]}'
)


def read_json(file: Path) -> tuple[Any, str]:
    """Return what a JSON file holds, and the SHA-256 hash of its bytes.

    Raises:
        UserError: it cannot be read, or is far larger than any such file.
    """
    with reading(file):
        file.stat()  # `read_bytes` would report a missing file as a missing part of a run
    data = read_bytes(file)
    try:
        return json.loads(data), sha256(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not a valid JSON file: {error}") from error


def split_by_class(
    data: ImageSet, share: float, seed: int, names: Sequence[str]
) -> tuple[ImageSet, ImageSet]:
    """Draw a share of every class as test images; both parts keep the order of the images.

    One `numpy.random.RandomState(seed)` permutes the images of class 0, then of class 1, and so
    on; the first round(`share` x images), at least one but not all, are test images.

    Args:
        data: images and labels.
        share: share of test images, between 0 and 1.
        seed: seed of the draw.
        names: class names by label, for the message.

    Returns:
        training images, and test images.

    Raises:
        UserError: a class has only one image.
    """
    draws, test = np.random.RandomState(seed), torch.zeros(len(data), dtype=torch.bool)
    members_of = data.labels.argsort(stable=True).split(data.labels.bincount().tolist())
    for label, members in enumerate(members_of):
        if len(members) < 2:
            raise UserError(
                f"'{names[label]}' has only {len(members)} images: too few to draw test images from"
            )
        count = min(len(members) - 1, max(1, round(share * len(members))))
        test[members[torch.from_numpy(draws.permutation(len(members))[:count])]] = True
    return data.subset(~test), data.subset(test)


def apply_split(source: Source, file: Path) -> Source:
    """Split the images of a data set into training and test images as a file specifies.

    The file is JSON in one of two forms. CoOp's form (Zhou et al. 2022), `split_zhou_*.json`,
    {"train": [[path, label, class name], ...], "val": [...], "test": [...]}, gives labels and class
    names too; its "val" images are left out, and `origin` records how many. The other form,
    {"train": [path, ...], "test": [path, ...]}, keeps the labels and names of the data set.

    A path stands for the one image file that ends with it, such as n01440764/x.jpg. If there is
    none, it stands for the file whose path shares the most trailing components with it, at least
    folder and name, so that files written on other machines can be used.

    Args:
        source: a data set of image files.
        file: the split.

    Raises:
        UserError: the file has neither form, contradicts itself, or names images that the data
            set does not hold; or the data set does not consist of image files.
    """
    sets = [source.train, source.test] + ([source.spare()] if source.spare else [])
    if not all(isinstance(data.images, ImageFiles) for data in sets):
        raise UserError(f"--split {file}: this data set does not consist of image files")
    content, digest = read_json(file)
    parts = [_entries(content, part, file) for part in ("train", "test")]
    rows = [entry for entries in parts for entry in entries]
    labelled = {isinstance(row, list) for row in rows}
    if len(labelled) > 1:
        raise UserError(f"{file} mixes two forms: expected {FORMS}")
    targets = {path: row for data in sets for path, row in _by_path(data).items()}
    paths = _match([row[0] if isinstance(row, list) else row for row in rows], list(targets), file)
    repeated = [path for path, count in Counter(paths).items() if count > 1]
    if repeated:
        raise UserError(
            f"{file} names {len(repeated)} images more than once, the first is {repeated[0]}"
        )
    names, labels = source.class_names, [targets[path][0] for path in paths]
    if labelled == {True}:
        names, labels = _labelled(source, rows, file)
    tasks = [targets[path][1] for path in paths]
    cut, unused = len(parts[0]), content.get("val")
    train, test = (
        ImageSet(
            ImageFiles(tuple(paths[span])),
            torch.tensor(labels[span]),
            torch.tensor(tasks[span]) if source.task_names else None,
        )
        for span in (slice(cut), slice(cut, None))
    )
    origin = {key: value for key, value in source.origin.items() if not key.startswith("split")}
    origin |= {"split": file.name, "split_sha256": digest}
    origin["split_val_unused"] = len(unused) if isinstance(unused, list) else 0
    if "classes" in origin:
        origin["classes"] = len(names)
    return replace(source, class_names=names, train=train, test=test, origin=origin)


def _labelled(source: Source, rows: list[Any], file: Path) -> tuple[tuple[str, ...], list[int]]:
    """Return the class names of a split in CoOp's form, and the label of each image."""
    names = _names([(row[1], row[2]) for row in rows], file)
    if isinstance(source.templates[0], tuple) and names != source.class_names:
        raise UserError(
            f"{file}: its class names differ from those that the prompts are written for"
        )
    return names, [row[1] for row in rows]


def _by_path(data: ImageSet) -> dict[Path, tuple[int, int]]:
    """Return label and task of each file."""
    tasks = torch.zeros_like(data.labels) if data.tasks is None else data.tasks
    rows = zip(data.labels.tolist(), tasks.tolist(), strict=True)
    return dict(zip(data.images.paths, rows, strict=True))


def _entries(content: Any, part: str, file: Path) -> list[Any]:
    """Return the entries of "train" or "test", all of a valid form."""
    entries = content.get(part) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{file} has no list '{part}' of images: expected {FORMS}")
    for number, entry in enumerate(entries, start=1):
        row = entry if isinstance(entry, list) else [entry, 0, "name"]
        if [type(value) for value in row] != [str, int, str] or not all(
            (row[0].strip(), row[1] >= 0, row[2].strip())
        ):
            raise UserError(f"{file}, '{part}', entry {number} is invalid: expected {FORMS}")
    return entries


def _names(rows: Sequence[tuple[int, str]], file: Path) -> tuple[str, ...]:
    """Return the class names by label."""
    name_of: dict[int, str] = {}
    label_of: dict[str, int] = {}
    for label, text in rows:
        name = plain_name(text)
        if name_of.setdefault(label, name) != name:
            raise UserError(f"{file}: label {label} is both '{name_of[label]}' and '{name}'")
        if label_of.setdefault(name, label) != label:
            raise UserError(f"{file}: '{name}' has two labels, {label_of[name]} and {label}")
    if max(name_of) >= len(name_of):
        missing = next(label for label in range(len(name_of)) if label not in name_of)
        raise UserError(f"{file}: labels go up to {max(name_of)}, but {missing} is missing")
    return tuple(name_of[label] for label in range(len(name_of)))


def _match(named: Sequence[str], paths: Sequence[Path], file: Path) -> list[Path]:
    """Return the file that each path stands for."""

    @cache
    def by_end(depth: int) -> dict[tuple[str, ...], list[Path]]:
        ends: dict[tuple[str, ...], list[Path]] = {}
        for path in paths:
            ends.setdefault(path.parts[-depth:], []).append(path)
        return ends

    matches: list[Path] = []
    failed: dict[str, int] = {}
    for name in named:
        parts = tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
        depth = min(2, len(parts))
        best = by_end(depth).get(parts[-depth:], [])
        while len(best) > 1 and depth < len(parts):
            depth += 1
            best, shorter = by_end(depth).get(parts[-depth:], []), best
            if not best:
                best = shorter
                break
        if len(best) == 1:
            matches.append(best[0])
        else:
            failed[name] = len(best)
    if failed:
        first, count = next(iter(failed.items()))
        what = f"matches {count} images" if count else "matches none"
        raise UserError(
            f"{file}: {len(failed)} of {len(named)} paths do not match exactly one image of this"
            f" data set; the first, {first}, {what}"
        )
    return matches
