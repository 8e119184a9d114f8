"""The three accuracy tables of a run, and the row that one evaluation adds to each."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Row = list[float | None]
Table = list[Row]


@dataclass
class AccuracyTables:
    """Accuracy in percent on task j (column j-1) after task t (row t); row 0 is before training.

    Attributes:
        test_samples: number of test samples of each task, (T,).
        seen: labels are the classes seen after task t; None where j > t.
        all_classes: labels are all classes of the stream.
        task_aware: labels are task j's own classes.
    """

    test_samples: list[int]
    seen: Table = field(default_factory=list)
    all_classes: Table = field(default_factory=list)
    task_aware: Table = field(default_factory=list)

    def append(self, scores: Tensor, labels: Tensor, task_classes: Sequence[Sequence[int]]) -> None:
        """Add the row of one evaluation of the whole test stream.

        Args:
            scores: (N, K) for all classes of the stream; the largest one wins.
            labels: (N,) class indices into the columns of `scores`.
            task_classes: the classes of each task.
        """
        rows = table_rows(scores, labels, task_classes, tasks_seen=len(self.seen))
        for table, row in zip((self.seen, self.all_classes, self.task_aware), rows, strict=True):
            table.append(row)


def accuracy(scores: Tensor, labels: Tensor, classes: Sequence[int] | None = None) -> float:
    """Top-1 accuracy in percent, choosing among `classes` only (default: all columns).

    Args:
        scores: (N, K).
        labels: (N,) column indices.
        classes: columns to choose from.

    Raises:
        ValueError: no samples, or a score that is not a number.

    Example:
        >>> scores = torch.tensor([[0.1, 0.7, 0.9], [0.8, 0.3, 0.1]])
        >>> accuracy(scores, torch.tensor([1, 0]))
        50.0
        >>> accuracy(scores, torch.tensor([1, 0]), classes=[0, 1])
        100.0
    """
    if len(labels) == 0:
        raise ValueError("accuracy of no samples is undefined")
    if torch.isnan(scores).any():
        raise ValueError("scores contain NaN: the model has diverged; lower the learning rate")
    if classes is None:
        chosen = scores.argmax(1)
    else:
        columns = torch.as_tensor(list(classes), device=scores.device)
        chosen = columns[scores[:, columns].argmax(1)]
    return 100.0 * int((chosen == labels).sum()) / len(labels)


def seen_curve(
    scores: Tensor, labels: Tensor, task_classes: Sequence[Sequence[int]]
) -> list[float | None]:
    """Return A_t, t = 0..T, of a model that stays as it is while the classes grow.

    Args:
        scores: (N, K) for all classes of the stream.
        labels: (N,).
        task_classes: the classes of each task.

    Returns:
        accuracy over the samples of tasks 1..t among their classes; None for t = 0.
    """
    curve: list[float | None] = [None]
    classes: list[int] = []
    for own in task_classes:
        classes += own
        known = torch.isin(labels, torch.as_tensor(classes, device=labels.device))
        curve.append(accuracy(scores[known], labels[known], classes))
    return curve


def table_rows(
    scores: Tensor, labels: Tensor, task_classes: Sequence[Sequence[int]], tasks_seen: int
) -> tuple[Row, Row, Row]:
    """Return one row of each table: classes seen, all classes, the task's own classes."""
    seen_classes = [c for classes in task_classes[:tasks_seen] for c in classes]
    seen: Row = []
    all_classes: Row = []
    task_aware: Row = []
    for task, classes in enumerate(task_classes):
        own = torch.isin(labels, torch.as_tensor(list(classes), device=labels.device))
        task_scores, task_labels = scores[own], labels[own]
        known = task < tasks_seen
        seen.append(accuracy(task_scores, task_labels, seen_classes) if known else None)
        all_classes.append(accuracy(task_scores, task_labels))
        task_aware.append(accuracy(task_scores, task_labels, classes))
    return seen, all_classes, task_aware
