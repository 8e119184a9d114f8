"""The three accuracy tables of a run, and the row that one evaluation adds to each."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Row = list[float | None]
Table = list[Row]


class NotANumberError(ValueError):
    """A score is NaN: the model has diverged."""


@dataclass
class AccuracyTables:
    """Accuracy in percent on task j (column j-1) after task t (row t); row 0 is before training.

    There may be more columns than tasks trained. A task without test samples is None in every row.

    Attributes:
        test_samples: number of test samples of each column's task.
        seen: labels are the classes seen after task t; None where j > t.
        all_classes: labels are all classes of the stream.
        task_aware: labels are task j's own classes.
    """

    test_samples: list[int]
    seen: Table = field(default_factory=list)
    all_classes: Table = field(default_factory=list)
    task_aware: Table = field(default_factory=list)

    def append(
        self,
        scores: Tensor,
        labels: Tensor,
        task_classes: Sequence[Sequence[int]],
        tasks: Tensor | None = None,
    ) -> None:
        """Add the row of one evaluation of the whole test stream.

        Args:
            scores: (N, K) for all classes of the stream; the largest one wins.
            labels: (N,) class indices into the columns of `scores`.
            task_classes: the classes of each task; tasks may share them.
            tasks: int64 (N,), the task of each sample, from 0; default: that of its class.

        Raises:
            ValueError: a score is NaN, or the task of a sample is ambiguous.
        """
        rows = table_rows(scores, labels, task_classes, len(self.seen), tasks)
        for table, row in zip((self.seen, self.all_classes, self.task_aware), rows, strict=True):
            table.append(row)


def accuracy(scores: Tensor, labels: Tensor, classes: Sequence[int] | None = None) -> float:
    """Top-1 accuracy in percent, choosing among `classes` only (default: all columns).

    Args:
        scores: (N, K).
        labels: (N,) column indices.
        classes: columns to choose from.

    Raises:
        ValueError: no samples.
        NotANumberError: a score is NaN.

    Example:
        >>> scores = torch.tensor([[0.1, 0.7, 0.9], [0.8, 0.3, 0.1]])
        >>> accuracy(scores, torch.tensor([1, 0]))
        50.0
        >>> accuracy(scores, torch.tensor([1, 0]), classes=[0, 1])
        100.0
    """
    if len(labels) == 0:
        raise ValueError("accuracy of no samples is undefined")
    check_scores(scores)
    if classes is None:
        chosen = scores.argmax(1)
    else:
        columns = torch.as_tensor(list(classes), device=scores.device)
        chosen = columns[scores[:, columns].argmax(1)]
    return 100.0 * int((chosen == labels).sum()) / len(labels)


def check_scores(scores: Tensor) -> None:
    """Raise `NotANumberError` if a score is NaN."""
    if torch.isnan(scores).any():
        raise NotANumberError("scores contain NaN: the model has diverged; lower the learning rate")


def seen_curve(
    scores: Tensor,
    labels: Tensor,
    task_classes: Sequence[Sequence[int]],
    tasks: Tensor | None = None,
) -> list[float | None]:
    """Return A_t, t = 0..T, of a model that does not change while classes are added.

    Args:
        scores: (N, K) for all classes of the stream.
        labels: (N,).
        task_classes: the classes of each task; only the first T tasks for a shorter curve.
        tasks: int64 (N,), the task of each sample, from 0; default: that of its class.

    Returns:
        accuracy over the samples of tasks 1..t among their classes; None for t = 0 and if there are
        no samples.
    """
    owner = _owner(labels, task_classes, tasks)
    curve: list[float | None] = [None]
    for t in range(1, len(task_classes) + 1):
        members = (owner >= 0) & (owner < t)
        curve.append(_accuracy_of(members, scores, labels, _union(task_classes[:t])))
    return curve


def learning_row(
    scores: Tensor,
    labels: Tensor,
    task_classes: Sequence[Sequence[int]],
    tasks: Tensor | None = None,
) -> list[float | None]:
    """Return the accuracy on each task when it arrives, of a model that does not change.

    Args:
        scores: (N, K) for all classes of the stream.
        labels: (N,).
        task_classes: the classes of each task.
        tasks: int64 (N,), the task of each sample, from 0; default: that of its class.

    Returns:
        accuracy on the samples of task t among the classes of tasks 1..t; None without samples.
    """
    owner = _owner(labels, task_classes, tasks)
    return [
        _accuracy_of(owner == t, scores, labels, _union(task_classes[: t + 1]))
        for t in range(len(task_classes))
    ]


def table_rows(
    scores: Tensor,
    labels: Tensor,
    task_classes: Sequence[Sequence[int]],
    tasks_seen: int,
    tasks: Tensor | None = None,
) -> tuple[Row, Row, Row]:
    """Return one row of each table: classes seen, all classes, the task's own classes.

    Arguments are those of `AccuracyTables.append`; `tasks_seen` counts the tasks learned.
    """
    owner = _owner(labels, task_classes, tasks)
    seen_classes = _union(task_classes[:tasks_seen])
    seen: Row = []
    all_classes: Row = []
    task_aware: Row = []
    for task, classes in enumerate(task_classes):
        members = owner == task
        learned = task < tasks_seen
        seen.append(_accuracy_of(members, scores, labels, seen_classes) if learned else None)
        all_classes.append(_accuracy_of(members, scores, labels))
        task_aware.append(_accuracy_of(members, scores, labels, classes))
    return seen, all_classes, task_aware


def _union(groups: Sequence[Sequence[int]]) -> list[int]:
    return list(dict.fromkeys(c for classes in groups for c in classes))


def _owner(labels: Tensor, task_classes: Sequence[Sequence[int]], tasks: Tensor | None) -> Tensor:
    """Return the task of each sample, (N,); -1 if its class is in none."""
    if tasks is not None:
        if tasks.shape != labels.shape:
            raise ValueError(f"tasks {tuple(tasks.shape)} of samples {tuple(labels.shape)}")
        return tasks.to(labels.device)
    if len(_union(task_classes)) < sum(map(len, task_classes)):
        raise ValueError("tasks share classes: pass `tasks` to say which task each sample is from")
    owner = torch.full_like(labels, -1)
    for task, classes in enumerate(task_classes):
        owner[torch.isin(labels, torch.as_tensor(list(classes), device=labels.device))] = task
    return owner


def _accuracy_of(
    members: Tensor, scores: Tensor, labels: Tensor, classes: Sequence[int] | None = None
) -> float | None:
    return accuracy(scores[members], labels[members], classes) if members.any() else None
