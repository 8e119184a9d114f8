"""The joint label space: the classes of a stream seen so far, and the names of all probes."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from cl_clipfit.metrics.tables import check_scores


class JointSpace:
    """The K classes of a stream, then the P names of its probes: the columns of (N, K + P) scores.

    An answer that has the name of an image's class, without regard to case and outer spaces, is
    right also if the name is that of another data set. Within a data set, where names may repeat,
    the label counts. Xu et al. 2024 (RAIL, arXiv 2406.18868, NeurIPS) rank the classes of all
    data sets so ("X-TAIL").

    Args:
        classes: names of the stream's classes in order of arrival.
        seen: number of classes seen after each task, which come first; 0 before the first.
        probes: the class names of every probe, by its name.
    """

    def __init__(
        self, classes: Sequence[str], seen: Sequence[int], probes: Mapping[str, Sequence[str]]
    ) -> None:
        self.classes, self.seen = len(classes), list(seen)
        groups = [classes, *probes.values()]
        names = [name.strip().casefold() for group in groups for name in group]
        numbers = {name: number for number, name in enumerate(names)}
        self._numbers = torch.tensor([numbers[name] for name in names])
        spans = pairwise(accumulate(map(len, groups), initial=0))
        self._spans = dict(zip((None, *probes), spans, strict=True))

    def right(
        self, scores: Tensor, labels: Tensor, tasks: Sequence[int], probe: str | None = None
    ) -> Tensor:
        """Return whether the best of the classes seen and all names is right.

        Args:
            scores: (N, K + P).
            labels: (N,) in the images' data set.
            tasks: numbers of tasks seen.
            probe: the data set; None for the stream.

        Returns:
            bool (N, len(tasks)).

        Raises:
            NotANumberError: a score is NaN.

        Example:
            >>> space = JointSpace(["cat", "dog"], [0, 1, 2], {"pets": ["Dog", "cow"]})
            >>> scores = torch.tensor([[0.1, 0.9, 0.5, 0.2]])  # of a dog
            >>> space.right(scores, torch.tensor([0]), [0, 1, 2], "pets").tolist()
            [[True, True, True]]
            >>> space.right(scores, torch.tensor([1]), [0, 1, 2], "pets").tolist()
            [[False, False, False]]
        """
        check_scores(scores)
        first, end = self._spans[probe]
        best = torch.stack([*self._best(scores, tasks)], 1)
        target = (labels + first)[:, None]
        numbers = self._numbers.to(scores.device)
        elsewhere = (best < first) | (best >= end)
        return (best == target) | (elsewhere & (numbers[best] == numbers[target]))

    def _best(self, scores: Tensor, tasks: Sequence[int]) -> Iterator[Tensor]:
        """Yield the best column (N,) after each of `tasks`, in ascending order; ties: the first."""
        names = scores[:, self.classes :].max(1)
        value, column = names.values.new_full((len(scores),), -torch.inf), names.indices * 0
        for start, end in pairwise([0, *(self.seen[task] for task in tasks)]):
            if end > start:
                new = scores[:, start:end].max(1)
                better = new.values > value
                value = torch.where(better, new.values, value)
                column = torch.where(better, new.indices + start, column)
            by_class = (value >= names.values) & (end > 0)
            yield torch.where(by_class, column, names.indices + self.classes)
