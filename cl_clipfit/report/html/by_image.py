"""What kept predictions tell: accuracy per class, confusion of tasks, images right and wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cl_clipfit.errors import UserError, printable
from cl_clipfit.metrics.predictions import Predictions
from cl_clipfit.report.html.heat import Heat, data_url, heat
from cl_clipfit.report.html.thumbnails import FATES, after_own_task, fates, read_thumbnails
from cl_clipfit.storage.predictions import read_predictions
from cl_clipfit.storage.result import Content, Result

MOST_CLASSES = 200  # rows of the table of classes
MOST_EXAMPLES = 24
WHEN = ("before", "after its task", "at the end")


@dataclass(frozen=True)
class Prediction:
    """The best class of an image at one time."""

    when: str
    name: str
    right: bool
    percent: float


@dataclass(frozen=True)
class Example:
    """A test image and what each method predicted.

    Attributes:
        picture: a data URL.
        name: its class.
        task: its task, from 1.
        predictions: by label, before training, after its task, and at the end.
    """

    picture: str
    name: str
    task: int
    predictions: dict[str, list[Prediction]]


@dataclass(frozen=True)
class Gallery:
    """The examples as a figure.

    Attributes:
        examples: images, and what each method predicted.
        name: of its file, without a suffix.
        title: what it shows.
    """

    examples: Sequence[Example]
    name: str = "examples"
    title: str = "test images and what each method predicted"

    @property
    def alt(self) -> str:
        """Return the figure in words."""
        names = ", ".join(f"{example.name} (task {example.task})" for example in self.examples)
        return f"{self.title}; images of {names}"


@dataclass(frozen=True)
class ByImage:
    """What the kept predictions of all runs of a protocol tell.

    Attributes:
        classes: accuracy of each class, before training and at the end of each method.
        omitted: number of classes that are not shown.
        confusion: for each method, the share of a task's images taken for another task's.
        examples: images, and what each method predicted.
        missing: why something is not shown; "" if all is.
    """

    classes: Heat | None
    omitted: int
    confusion: list[tuple[str, Heat]]
    examples: list[Example]
    missing: str


def by_image(runs: Sequence[Result], names: Sequence[str]) -> ByImage:
    """Read the kept predictions of runs of one protocol.

    Args:
        runs: with the label that each is shown under.
        names: of the classes, in order of arrival.
    """
    of_class: dict[str, list[NDArray[Any]]] = {}
    of_task: dict[str, list[NDArray[Any]]] = {}
    before: list[NDArray[Any]] = []
    first: dict[str, list[Predictions]] = {}  # of each method, those of its first run
    pictures: dict[int, Any] = {}
    missing: dict[str, None] = {}
    home, order = _homes(runs[0].content), runs[0].content["class_order"]
    if any(run.content["class_order"] != order for run in runs):
        missing["Classes and tasks below are those of the first class order alone."] = None
    for run in runs:
        if run.content["class_order"] != order:
            continue
        # Of further seeds, only the last predictions are shown.
        needed = [0, len(run.accuracy_matrix) - 1] if run.label in first else None
        rows = _rows(run, len(names), needed, missing)
        if not rows:
            continue
        if not before:
            before.append(_per_class(rows[0], len(names)))
        of_class.setdefault(run.label, []).append(_per_class(rows[-1], len(names)))
        if home is not None:
            of_task.setdefault(run.label, []).append(_confusion(rows[-1], home))
        same = not first or np.array_equal(next(iter(first.values()))[0].labels, rows[0].labels)
        if run.label not in first and same:
            first[run.label] = rows
            pictures |= _pictures(run, missing)
    classes, omitted = _classes(before, of_class, names, runs[0].content)
    tables = [(label, _confusion_table(label, np.mean(t, 0))) for label, t in of_task.items()]
    return ByImage(classes, omitted, tables, _examples(first, pictures, names), " ".join(missing))


def class_names(content: Content) -> list[str]:
    """Return the names of the classes in order of arrival, which numbers them.

    Classes that come in several tasks are named once.
    """
    count = len(content["class_order"])
    names = [name for task in content["tasks"] for name in task["classes"]]
    if len(names) != count:
        names = list(dict.fromkeys(names))
    return names if len(names) == count else [f"class {at + 1}" for at in range(count)]


def _homes(content: Content) -> NDArray[Any] | None:
    """Return the task of each class, (K,); None if a class comes in several tasks."""
    sizes = [len(task["classes"]) for task in content["tasks"]]
    whole = sum(sizes) == len(content["class_order"]) and len(sizes) > 1
    return np.repeat(np.arange(len(sizes)), sizes) if whole else None


def _rows(
    run: Result, classes: int, needed: list[int] | None, missing: dict[str, None]
) -> list[Predictions]:
    """Return the predictions of a run; none, with a reason in `missing`, if they cannot be used."""
    try:
        rows = read_predictions(run.path, needed)
    except UserError as error:
        missing[f"{error}."] = None
        return []
    if not rows:
        missing["Some runs kept no predictions, and are left out below."] = None
    elif (
        len(rows) != len(needed or run.accuracy_matrix) or max(r.top.max() for r in rows) >= classes
    ):
        missing[f"{run.path.name}: its predictions are not those of its result.json."] = None
        return []
    return rows


def _pictures(run: Result, missing: dict[str, None]) -> dict[int, Any]:
    try:
        return read_thumbnails(run.path)
    except (UserError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        missing[f"{run.path.name}: its thumbnails cannot be read: {printable(str(error))}."] = None
        return {}


def _per_class(row: Predictions, classes: int) -> NDArray[Any]:
    """Return the accuracy of each class in percent, (K,); NaN without test images."""
    total = np.bincount(row.labels, minlength=classes).astype(float)
    right = np.bincount(row.labels[row.right], minlength=classes)
    return 100 * np.divide(right, total, out=np.full(classes, np.nan), where=total > 0)


def _confusion(row: Predictions, home: NDArray[Any]) -> NDArray[Any]:
    """Return the share of each task's images that are taken for each task's classes, (T, T)."""
    tasks = int(home.max()) + 1
    answered = home[row.top[:, 0]]
    counts = np.bincount(row.tasks * tasks + answered, minlength=tasks**2).reshape(tasks, tasks)
    total = counts.sum(1, keepdims=True).astype(float)
    return 100 * np.divide(counts, total, out=np.full((tasks, tasks), np.nan), where=total > 0)


def _confusion_table(label: str, shares: NDArray[Any]) -> Heat:
    numbers = [str(task + 1) for task in range(len(shares))]
    title = "what the images of a task are taken for (%)"
    return heat(
        f"confusion-{label}", title, shares, numbers, numbers,
        corner="image of task / taken for task", unit="share of the images (%)",
    )  # fmt: skip


def _classes(
    before: Sequence[NDArray[Any]], of_class: dict[str, list[NDArray[Any]]],
    names: Sequence[str], content: Content,
) -> tuple[Heat | None, int]:  # fmt: skip
    """Return the table of classes, and how many it leaves out: those that differ least."""
    if not before:
        return None, 0
    columns = {"before training": before[0]}
    columns |= {label: np.mean(tables, 0) for label, tables in of_class.items()}
    values = np.stack([*columns.values()], 1)
    spread = np.nan_to_num(values.max(1) - values.min(1), nan=-1.0)
    shown = np.sort(np.argsort(-spread, kind="stable")[:MOST_CLASSES])
    home = _homes(content)
    tasks = [""] * len(names) if home is None else [f" (task {t + 1})" for t in home]
    rows = [printable(names[at]) + tasks[at] for at in shown]
    table = heat(
        "classes", "accuracy of each class at the end (%)", values[shown], rows, list(columns),
        corner="class", unit="accuracy (%)", as_table=True,
    )  # fmt: skip
    return table, len(names) - len(shown)


def _examples(
    first: dict[str, list[Predictions]], pictures: dict[int, Any], names: Sequence[str]
) -> list[Example]:
    """Return images of every fate of every method in turn."""
    if not first:
        return []
    labels = next(iter(first.values()))[0]
    images = [n for n in pictures if n < len(labels.labels)]
    kinds = {label: fates(rows) for label, rows in first.items()}
    queues = [
        [n for n in images if kinds[label][n] == kind]
        for kind in range(len(FATES))
        for label in kinds
    ]
    turns = range(max(map(len, queues)))
    chosen = list(dict.fromkeys(q[turn] for turn in turns for q in queues if turn < len(q)))
    own = {label: after_own_task(rows) for label, rows in first.items()}
    return [
        Example(
            data_url(pictures[n]), printable(names[labels.labels[n]]), int(labels.tasks[n]) + 1,
            {
                label: [
                    _prediction(when, row, n, names)
                    for when, row in zip(WHEN, (rows[0], own[label], rows[-1]), strict=True)
                ]
                for label, rows in first.items()
            },
        )
        for n in chosen[:MOST_EXAMPLES]
    ]  # fmt: skip


def _prediction(when: str, row: Predictions, image: int, names: Sequence[str]) -> Prediction:
    name = printable(names[row.top[image, 0]])
    return Prediction(when, name, bool(row.right[image]), 100 * float(row.scores[image, 0]))
