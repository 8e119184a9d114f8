"""Trees of image folders: train/CLASS and test/CLASS, or classes alone, to be split by a draw."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from cl_clipfit.config.options import Options
from cl_clipfit.data.formats.folders import (
    identity,
    list_classes,
    loose_images,
    plain_name,
    visible_folders,
)
from cl_clipfit.data.images.lazy import ImageFiles
from cl_clipfit.data.source import ImageSet, draw_share
from cl_clipfit.errors import UserError
from cl_clipfit.storage.result import RESULT

TEST_PARTS = ("test", "val", "valid")  # the first one present holds the test images


class SplitOptions(Options):
    """How folders without separate test images are split."""

    test_share: float = Field(
        0.2, gt=0, lt=1, description="share of each class drawn as test images, if none are given"
    )
    split_seed: int = Field(0, ge=0, lt=2**63, description="seed of that draw")


@dataclass(frozen=True)
class Tree:
    """Labelled image files below one folder.

    Attributes:
        names: class names in label order.
        train: training images.
        test: test images.
        drawn: True if the test images were drawn from all images.
        warnings: lines about images that may be misplaced.
        deep: True if no image is directly in the folder of its class.
    """

    names: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    drawn: bool
    warnings: tuple[str, ...] = ()
    deep: bool = False


def read_tree(folder: Path, options: SplitOptions) -> Tree:
    """List train/CLASS/** and test/CLASS/**, or CLASS/** and draw test images from each class.

    `val` or `valid` is used if there is no `test`.

    Args:
        folder: holds these folders.
        options: how test images are drawn.

    Raises:
        UserError: training and test classes differ, a class to be split has a single image, the
            folder is the one above a data set, or as `list_classes`.
    """
    parts = {p.name.lower(): p for p in visible_folders(folder)}
    there = [name for name in ("train", *TEST_PARTS) if name in parts]
    if "train" in there and len(there) > 1:
        names, files, labels = list_classes(parts["train"])
        test_names, test_files, test_labels = list_classes(parts[there[1]])
        for name in sorted({*names} ^ {*test_names}):
            has, lacks = there[:2] if name in names else there[1::-1]
            raise UserError(f"{folder}: class '{name}' is in {has}/ but not in {lacks}/")
        train, test = ImageSet(files, labels), ImageSet(test_files, test_labels)
        return _tree(parts["train"], names, train, test, drawn=False)
    if there and visible_folders(parts[there[0]]):
        lacks = "test/, val/ or valid/" if there[0] == "train" else "train/"
        raise UserError(
            f"{folder} has {there[0]}/ but no {lacks}: add it, or name {parts[there[0]]} itself to"
            " have test images drawn from it"
        )
    names, files, labels = list_classes(folder)
    _check_level(folder, files)
    data = ImageSet(files, labels)

    def lone(label: int) -> str:
        return (
            f"{folder / names[label]} holds one image: at least two are needed, one to train and"
            " one to test"
        )

    held = draw_share(data, options.test_share, options.split_seed, lone)
    return _tree(folder, names, data.subset(~held), data.subset(held), drawn=True)


def _tree(
    folder: Path, names: tuple[str, ...], train: ImageSet, test: ImageSet, drawn: bool
) -> Tree:
    """Return a tree with what may be misplaced in it; `folder` holds its classes."""
    warnings = _repeated(train, test)
    if loose := loose_images(folder):
        warnings.append(
            f"{len(loose)} images directly in {folder}, such as {loose[0].name}, are in the folder"
            " of no class, and left out"
        )
    shown = [plain_name(name) for name in names]
    deep = all("" not in inside for inside in _inside(folder, train.images).values())
    if deep and len(names) > 1:
        warnings.append(
            f"all images of {folder} are in folders inside those of its {len(names)} classes"
            f" ({', '.join(shown[:3])}{', ...' if len(names) > 3 else ''}): if these are the"
            " classes, name the folder that holds them"
        )
    return Tree(tuple(shown), train, test, drawn, tuple(warnings), deep)


def _inside(folder: Path, files: ImageFiles) -> dict[str, set[str]]:
    """Return, by class folder, the folders in it that images are in; "" for itself."""
    inside: dict[str, set[str]] = {}
    for path in files.paths:
        name, *below, _ = path.relative_to(folder).parts
        inside.setdefault(name, set()).add(below[0].lower() if below else "")
    return inside


def _check_level(folder: Path, files: ImageFiles) -> None:
    """Refuse a folder above a data set: its neighbours there are not classes."""
    for name, inside in _inside(folder, files).items():
        if "train" in inside and inside & {*TEST_PARTS}:
            raise UserError(
                f"{folder} is one level above a data set, which is {folder / name} with its train/"
                f" and {min(inside & {*TEST_PARTS})}/: name that folder"
            )
    for parent in dict.fromkeys(path.parent for path in files.paths):
        if (parent / RESULT).is_file():
            raise UserError(
                f"{parent} holds the figures of a run, not images of a class: name the folder of"
                f" the data set alone, not {folder}"
            )


def _repeated(train: ImageSet, test: ImageSet) -> list[str]:
    """Return warnings about files that links, or hard links, list more than once."""
    seen: dict[tuple[int, int], tuple[Path, int, bool]] = {}
    both, classes = [], []
    for data in (train, test):
        for path, label in zip(data.images.paths, data.labels.tolist(), strict=True):
            try:
                key = identity(path)
            except UserError:  # reported when it is decoded
                continue
            first, other, trained = seen.setdefault(key, (path, label, data is train))
            both += [path] * (trained and data is test)
            classes += [f"{first} and {path}"] * (label != other)
    warnings = []
    if both:
        warnings.append(
            f"{len(both)} of {len(test)} test images are training images too, by links, the first"
            f" is {both[0]}: accuracy on them is no test"
        )
    if classes:
        warnings.append(
            f"{len(classes)} images are in several classes, by links, the first is {classes[0]}"
        )
    return warnings
