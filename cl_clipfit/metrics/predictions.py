"""What a method predicted for every test image: its five best classes in one label space."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

TOP = 5  # classes that are kept of each image
NONE = -1  # in place of a class, where the label space has fewer


@dataclass(frozen=True)
class Predictions:
    """The predictions for all N test images of a stream after a task, or before training.

    The label space is that of `accuracy_matrix`: in row t the classes seen after task t, also for
    the images of later tasks, whose class is not among them; in row 0 all classes of the stream.

    Attributes:
        labels: int32 (N,), the class of each image, in order of arrival.
        top: int32 (N, 5), the most probable classes, best first; -1 where there are fewer than 5.
        scores: float16 (N, 5), their probabilities: the softmax over the label space of the
            method's scores; 0 where there is no class. They are probabilities as far as those
            scores are logits: a ridge head's, for example, only rank the classes.
        tasks: int32 (N,), the task of each image, from 0: the column of the accuracy tables.
    """

    labels: NDArray[np.int32]
    top: NDArray[np.int32]
    scores: NDArray[np.float16]
    tasks: NDArray[np.int32]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Return whether the best class of each image is its own, (N,)."""
        return self.top[:, 0] == self.labels

    def of(self, images: NDArray[np.bool_]) -> "Predictions":
        """Return the predictions for some of the images.

        Args:
            images: bool (N,).
        """
        return Predictions(
            self.labels[images], self.top[images], self.scores[images], self.tasks[images]
        )

    def accuracy(self, task: int) -> float | None:
        """Return the accuracy in percent on a task, from 0; None without test images."""
        right = self.right[self.tasks == task]
        return 100.0 * int(right.sum()) / len(right) if len(right) else None


def predictions(
    scores: "Tensor", labels: "Tensor", tasks: "Tensor", classes: Sequence[int] | None = None
) -> Predictions:
    """Keep the best classes of each image.

    The first one is the choice that `metrics.tables.accuracy` makes, also among equal scores.

    Args:
        scores: (N, K) for all classes of the stream.
        labels: (N,).
        tasks: (N,), from 0.
        classes: the label space; default: all.

    Example:
        >>> import torch
        >>> scores, label, task = torch.tensor([[0.0, 2.0, 2.0]]), torch.tensor([1]), torch.zeros(1)
        >>> kept = predictions(scores, label, task)
        >>> kept.top.tolist(), (100 * kept.scores).astype(int).tolist()
        ([[1, 2, 0, -1, -1]], [[46, 46, 6, 0, 0]])
    """
    import torch  # takes seconds, and reading predictions needs none of it

    columns = torch.arange(scores.shape[1]) if classes is None else torch.tensor([*classes])
    space = scores.cpu()[:, columns].float()
    count = min(TOP, len(columns))
    best = space.argmax(1, keepdim=True)
    order = space.scatter(1, best, torch.inf).topk(count, 1).indices
    top = torch.full((len(space), TOP), NONE)
    kept = torch.zeros(len(space), TOP)
    top[:, :count] = columns[order]
    kept[:, :count] = space.softmax(1).gather(1, order)
    integers = [x.cpu().numpy().astype(np.int32) for x in (labels, top, tasks)]
    return Predictions(integers[0], integers[1], kept.numpy().astype(np.float16), integers[2])


def learned(rows: Sequence[Predictions]) -> Predictions:
    """Return the predictions after the last task for the images of the tasks learned.

    Their accuracy is the metric `last_accuracy`.

    Args:
        rows: of a run, before training and after each task.
    """
    return rows[-1].of(rows[-1].tasks < len(rows) - 1)


def class_accuracy(kept: Predictions) -> dict[int, float]:
    """Return the accuracy in percent on each class that has images, by its label.

    Example:
        >>> a = np.array([0, 0, 3])
        >>> kept = Predictions(a, np.array([[0], [3], [3]]), np.ones((3, 1)), a)
        >>> class_accuracy(kept)
        {0: 50.0, 3: 100.0}
    """
    images = np.bincount(kept.labels)
    right = np.bincount(kept.labels[kept.right], minlength=len(images))
    return {label: 100.0 * int(right[label]) / int(n) for label, n in enumerate(images) if n}
