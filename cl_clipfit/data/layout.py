"""Which class arrives when, as set by options, by files, or by the data set itself."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_clipfit.data.orders import class_order, read_tasks, split_tasks
from cl_clipfit.data.source import Source
from cl_clipfit.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Which class arrives when. Labels count from 0 in order of arrival.

    Attributes:
        order: original label of each arrival label.
        task_classes: arrival labels of each task; in a stream of domains tasks share classes.
        task_names: names of the tasks; empty if they have none.
        parts: the tasks, from 0, with which a stream begins that follows another; usually none.
    """

    order: list[int]
    task_classes: list[list[int]]
    task_names: tuple[str, ...] = ()
    parts: tuple[int, ...] = ()

    @property
    def first_labels(self) -> tuple[int, ...]:
        """Return the arrival label of the first class of each of `parts`."""
        return tuple(min(self.task_classes[task]) for task in self.parts)

    @cached_property
    def arrival(self) -> Tensor:
        """Return the arrival label of each original label, (K,)."""
        return torch.tensor(self.order).argsort()

    @cached_property
    def task_of_class(self) -> Tensor:
        """Return the first task of each arrival label, (K,)."""
        task_of = torch.empty(len(self.order), dtype=torch.long)
        for task, classes in reversed(list(enumerate(self.task_classes))):
            task_of[classes] = task
        return task_of


def make_layout(
    source: Source,
    *,
    tasks: int | None = None,
    order: str | None = None,
    base_classes: int | None = None,
    tasks_file: Path | None = None,
) -> Layout:
    """Decide which class arrives when; every class is assigned to a task.

    Args:
        source: the data set; tasks that it defines take precedence.
        tasks: number of tasks, including that of the base classes; default 1.
        order: name or file of a class order, see `orders.class_order`; default natural.
        base_classes: number of classes of the first task; the other tasks share the rest.
        tasks_file: YAML file that names each task's classes.

    Raises:
        UserError: options contradict each other or the data, or there are more tasks than classes.
    """
    if source.task_names:
        _check_options(source, tasks, order, base_classes, tasks_file)
        return _source_layout(source)
    names = source.class_names
    if tasks_file is not None:
        if base_classes is not None or order not in (None, "natural"):
            raise UserError(
                f"--tasks {tasks_file}: the file says which classes arrive when, so leave out"
                " --base-classes and --class-order"
            )
        task_names, groups = read_tasks(tasks_file, names)
        starts = torch.tensor([0, *map(len, groups)]).cumsum(0).tolist()
        spans = [list(range(*span)) for span in pairwise(starts)]
        return Layout([label for group in groups for label in group], spans, tuple(task_names))
    arrival = class_order(order or "natural", len(names), names)
    return Layout(arrival, split_tasks(len(names), tasks or 1, base_classes))


def _check_options(source: Source, tasks: Any, order: Any, base: Any, file: Any) -> None:
    """Refuse options that contradict the tasks of the data set."""
    given = [
        option
        for option, value in (
            ("--base-classes", base),
            ("--tasks", file or (tasks not in (None, len(source.task_names)) and tasks)),
            ("--class-order", order not in (None, "natural") and order),
        )
        if value
    ]
    if given:
        raise UserError(
            f"{given[0]}: the data set defines its tasks ({len(source.task_names)}:"
            f" {', '.join(source.task_names[:12])}), so leave out this option"
        )


def _source_layout(source: Source) -> Layout:
    """Arrange the tasks of the data set: classes by their first task, then by label."""
    members: list[set[int]] = [set() for _ in source.task_names]
    for data in (source.train, source.test):
        assert data.tasks is not None
        pairs = torch.stack([data.tasks, data.labels]).unique(dim=1)
        for task, label in pairs.T.tolist():
            members[task].add(label)
    order = list(dict.fromkeys(label for labels in members for label in sorted(labels)))
    order += [label for label in range(len(source.class_names)) if label not in set(order)]
    arrival = {label: new for new, label in enumerate(order)}
    return Layout(
        order, [sorted(arrival[label] for label in labels) for labels in members], source.task_names
    )
