"""Class orders by name or from a file, and how an order is split into tasks."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cl_clipfit.config.text_files import read_text, scalar, yaml_node
from cl_clipfit.errors import UserError, is_file, nearest

# Used with OpenAI's weights by Continual-CLIP, ZSCL, MoE-Adapters, RAPF and MG-CLIP.
DER_CIFAR100 = (
    87, 0, 52, 58, 44, 91, 68, 97, 51, 15, 94, 92, 10, 72, 49, 78, 61, 14, 8, 86, 84, 96, 18, 24,
    32, 45, 88, 11, 4, 67, 69, 66, 77, 47, 79, 93, 29, 50, 57, 83, 17, 81, 41, 12, 37, 59, 25, 20,
    80, 73, 1, 28, 6, 46, 62, 82, 53, 9, 31, 75, 38, 63, 33, 74, 27, 22, 36, 3, 16, 21, 60, 19,
    70, 90, 89, 43, 5, 42, 65, 76, 40, 30, 23, 85, 2, 95, 56, 48, 71, 64, 98, 13, 99, 7, 34, 55,
    54, 26, 35, 39
)  # fmt: skip
# Used on ImageNet-R with OpenAI's weights by RAPF and MG-CLIP.
RAPF_IMAGENET_R = (
    29, 75, 18, 9, 62, 46, 133, 54, 89, 24, 135, 158, 119, 198, 49, 96, 32, 21, 79, 3, 65, 131,
    191, 30, 140, 113, 84, 95, 188, 167, 127, 164, 185, 170, 168, 136, 98, 12, 121, 186, 193,
    172, 51, 19, 104, 108, 161, 178, 73, 152, 7, 61, 39, 67, 14, 91, 111, 41, 56, 194, 23, 145,
    184, 165, 189, 122, 128, 48, 66, 47, 148, 92, 199, 109, 160, 110, 132, 102, 154, 107, 33,
    70, 80, 173, 187, 97, 43, 81, 153, 147, 112, 17, 52, 195, 144, 50, 146, 40, 141, 143, 106,
    10, 22, 115, 162, 44, 1, 34, 134, 26, 183, 4, 87, 139, 45, 94, 27, 83, 130, 103, 126, 138,
    35, 123, 190, 105, 71, 88, 76, 156, 180, 176, 25, 37, 137, 6, 15, 175, 192, 63, 11, 31, 8,
    196, 36, 159, 85, 28, 77, 93, 174, 78, 171, 150, 42, 99, 0, 2, 149, 86, 72, 163, 166, 117,
    116, 74, 125, 55, 90, 120, 114, 20, 182, 68, 69, 181, 157, 38, 59, 179, 16, 177, 64, 57, 5,
    58, 129, 13, 118, 124, 100, 169, 142, 155, 101, 53, 82, 60, 151, 197
)  # fmt: skip
_LISTS = {"der-cifar100": DER_CIFAR100, "rapf-imagenet-r": RAPF_IMAGENET_R}
NAMED_ORDERS = ("natural", "pycil-1993", *_LISTS)
_SUFFIXES = (".txt", ".json", ".yaml", ".yml")
_Entry = tuple[str, str]  # position in the file, and text


def class_order(name: str, classes: int, names: Sequence[str] = ()) -> list[int]:
    """Return the original labels 0..classes-1 in order of arrival.

    Args:
        name: `natural`; `pycil-1993`, the order of PyCIL, PROOF and their successors, which is
            `numpy.random.RandomState(1993).permutation`; `der-cifar100`, the order of 100 classes
            of DER (Yan et al. 2021), RAPF and others; `rapf-imagenet-r`, RAPF's order of the 200
            classes of ImageNet-R; `seed:N`, like pycil-1993 with seed N; or a file: text with one
            class per line, or a list in JSON or YAML. A class is given by its name or its original
            label; a number that is both is taken as the name.
        classes: number of classes.
        names: class names by label; without them a file can only give labels.

    Raises:
        UserError: the name is unknown, the order is for another number of classes, or a file does
            not list every class exactly once.

    Example:
        >>> class_order("pycil-1993", 100)[:5]
        [68, 56, 78, 8, 23]
    """
    if name == "natural":
        return list(range(classes))
    if name in _LISTS:
        labels = _LISTS[name]
        if classes != len(labels):
            raise UserError(
                f"--class-order {name}: an order of {len(labels)} classes, not of {classes}"
            )
        return list(labels)
    seed = order_seed(name)
    if seed is not None:
        return np.random.RandomState(seed).permutation(classes).tolist()
    if name.startswith("seed:"):
        raise UserError(f"--class-order {name}: N in seed:N must be from 0 to {2**32 - 1}")
    if is_file(name) or name.lower().endswith(_SUFFIXES) or "/" in name:
        place = f"--class-order {name}"
        return _permutation(_read_list(Path(name), place), classes, names, place)
    raise UserError(
        f"unknown class order '{name}'. {nearest(name, [*NAMED_ORDERS, 'seed:N', 'FILE'])}"
    )


def order_seed(name: str | None) -> int | None:
    """Return the seed that a class order is drawn with; None if it is not drawn.

    Example:
        >>> [order_seed(name) for name in ("seed:4", "pycil-1993", "natural", None)]
        [4, 1993, None, None]
    """
    text = "seed:1993" if name == "pycil-1993" else name or ""
    seeded = re.fullmatch(r"seed:([0-9]{1,10})", text)
    return int(seeded[1]) if seeded and int(seeded[1]) < 2**32 else None


def split_tasks(classes: int, tasks: int, base_classes: int | None = None) -> list[list[int]]:
    """Split arrival labels 0..classes-1 into `tasks` runs; earlier tasks take the remainder.

    Args:
        classes: number of classes.
        tasks: number of tasks, including that of the base classes.
        base_classes: number of classes of the first task; the others share the rest. Default: an
            equal share.

    Raises:
        UserError: more tasks than classes, or base classes that leave too few for the others.

    Example:
        >>> split_tasks(10, 3)
        [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
        >>> split_tasks(10, 3, base_classes=6)
        [[0, 1, 2, 3, 4, 5], [6, 7], [8, 9]]
    """
    if base_classes is None:
        if tasks > classes:
            raise UserError(f"--tasks {tasks}: there are only {classes} classes")
        return [part.tolist() for part in np.array_split(np.arange(classes), tasks)]
    given = f"--base-classes {base_classes} with --tasks {tasks}"
    left = classes - base_classes
    if tasks == 1 and left != 0:
        raise UserError(f"{given}: a single task takes all {classes} classes, increase --tasks")
    if tasks > 1 and left <= 0:
        raise UserError(
            f"{given}: there are {classes} classes, so none is left for the other tasks"
        )
    if tasks - 1 > left:
        raise UserError(f"{given}: only {left} classes are left for the other {tasks - 1} tasks")
    others = np.array_split(np.arange(base_classes, classes), tasks - 1) if tasks > 1 else []
    return [list(range(base_classes)), *(part.tolist() for part in others)]


def read_tasks(file: Path, names: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    """Read a YAML file that says which classes each task has.

    Args:
        file: a list of lists, or a mapping of a task's name to its list, of class names or original
            labels; a number that is both is taken as the name. Everything is read as text: a class
            `no` or `on` is not a boolean.
        names: class names by original label.

    Returns:
        names of the tasks ("task 1" and so on if the file has none), and the original labels of
        each, in the order of the file.

    Raises:
        UserError: the file does not exist or has another structure, or a class is missing, unknown
            or repeated.
    """
    import yaml

    place = f"--tasks {file}"
    node = yaml_node(file, place)
    groups: list[tuple[str, Any]] = []
    if isinstance(node, yaml.MappingNode):
        groups = [(scalar(key, place), value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        groups = [(f"task {t}", value) for t, value in enumerate(node.value, 1)]
    if not groups:
        raise UserError(f"{place}: must be a list of lists of classes, or map task names to lists")
    repeated = [name for name, count in Counter(name for name, _ in groups).items() if count > 1]
    if repeated:
        raise UserError(f"{place}: two tasks are called '{repeated[0]}'")
    tasks = []
    for name, value in groups:
        if not isinstance(value, yaml.SequenceNode) or not value.value:
            raise UserError(
                f"{place}, line {value.start_mark.line + 1}: '{name}' must be a list of classes"
            )
        tasks.append(_scalars(value, place))
    labels = iter(_permutation([e for task in tasks for e in task], len(names), names, place))
    return [name for name, _ in groups], [[next(labels) for _ in task] for task in tasks]


def _scalars(node: Any, place: str) -> list[_Entry]:
    return [(f"line {n.start_mark.line + 1}", scalar(n, place)) for n in node.value]


def _read_list(file: Path, place: str) -> list[_Entry]:
    """Read a list of classes: JSON or YAML by the file's suffix, else one per line."""
    suffix = file.suffix.lower()
    if suffix in (".yaml", ".yml"):
        import yaml

        node = yaml_node(file, place)
        if isinstance(node, yaml.SequenceNode):
            return _scalars(node, place)
    elif suffix == ".json":
        try:
            values = json.loads(read_text(file, place), parse_int=str, parse_float=str)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: this is not valid JSON: {error}") from error
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            return [(f"entry {i}", value) for i, value in enumerate(values, 1)]
    else:
        lines = read_text(file, place).splitlines()
        return [(f"line {i}", line.strip()) for i, line in enumerate(lines, 1) if line.strip()]
    raise UserError(f"{place}: must be a list of class names or labels")


def _permutation(
    entries: Sequence[_Entry], classes: int, names: Sequence[str], place: str
) -> list[int]:
    """Return the label of each entry, checking that every class has exactly one entry."""
    by_name: dict[str, list[int]] = {}
    for label, name in enumerate(names):
        by_name.setdefault(name, []).append(label)
    places: dict[int, str] = {}
    for where, text in entries:
        labels = by_name.get(text)
        if labels is None and re.fullmatch("[0-9]{1,9}", text) and int(text) < classes:
            labels = [int(text)]
        if labels is None:
            hint = nearest(text, by_name)
            if not by_name or (hint.startswith("Known") and len(by_name) > 20):
                hint = f"Labels are 0 to {classes - 1}."
            raise UserError(f"{place}, {where}: unknown class '{text}'. {hint}")
        if len(labels) > 1:
            raise UserError(
                f"{place}, {where}: {len(labels)} classes are called '{text}', use their labels"
                f" {', '.join(map(str, labels))}"
            )
        if labels[0] in places:
            raise UserError(
                f"{place}, {where}: class '{text}' is repeated, it is already in"
                f" {places[labels[0]]}"
            )
        places[labels[0]] = where
    missing = [label for label in range(classes) if label not in places]
    if missing:
        first = f"'{names[missing[0]]}' (label {missing[0]})" if names else f"label {missing[0]}"
        more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise UserError(f"{place}: every class must be listed; {first}{more} missing")
    return list(places)
