"""A sample of the prompts that a distillation holds, so that a step's cost does not grow."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_clipfit.training.losses import cosine_distance

_DRAW_SEED = 3_000_003  # keeps the draws apart from data order, crops and path points


@dataclass(frozen=True)
class PromptSample:
    """The prompts that one pass distils.

    Attributes:
        classes: labels, in the order in which they are encoded.
        names: positions in a list of further names, whose rows follow those of the classes.
        certain: rows at the front that are no draw.
        drawn_from: how many prompts the other rows were drawn from; 0 where all are there.
    """

    classes: list[int]
    names: list[int]
    certain: int = 0
    drawn_from: int = 0

    def distance(self, features: Tensor, anchors: Tensor) -> Tensor:
        """Estimate `cosine_distance` over all prompts, without bias; a scalar.

        Stratified sampling (Cochran 1977, Sampling Techniques, chapter 5): the sum over the certain
        rows, and the mean over the drawn ones for each prompt they were drawn from.

        Args:
            features: (P, d), unit length, a row for each of `classes`, then of `names`.
            anchors: (P, d), unit length.

        Example:
            >>> sample = PromptSample([0, 2], [], certain=1, drawn_from=3)
            >>> float(sample.distance(torch.eye(2), torch.tensor([[1.0, 0], [1, 0]])))
            0.75
        """
        if not self.drawn_from:
            return cosine_distance(features, anchors)
        distances = 1 - (features * anchors).sum(-1)
        total = distances[: self.certain].sum()
        total = total + self.drawn_from * distances[self.certain :].mean()
        return total / (self.certain + self.drawn_from)


class PromptDraws:
    """Draws the prompts of every pass, on the CPU, by a generator of its own.

    Args:
        seed: of all its draws.
    """

    def __init__(self, seed: int) -> None:
        self._seed, self._generator = seed, torch.Generator()
        self.start_task(0)

    def start_task(self, tasks_seen: int) -> None:
        """Begin the draws of a task, which do not depend on what was drawn in those before."""
        self._generator.manual_seed((self._seed + _DRAW_SEED * (1 + tasks_seen)) % 2**63)

    def positions(self, count: int, total: int) -> list[int]:
        """Return `count` of the numbers below `total`, in rising order, without replacement."""
        drawn = torch.randperm(total, generator=self._generator)[:count]
        return sorted(drawn.tolist())

    def sample(
        self, certain: Sequence[int], classes: Sequence[int], names: int = 0,
        limit: int | None = None,
    ) -> PromptSample:  # fmt: skip
        """Choose the prompts of a pass.

        Args:
            certain: labels that are encoded anyway, some of `classes`.
            classes: labels of all prompts of classes.
            names: number of further names.
            limit: prompts that are drawn from the others, uniformly; None all of them.
        """
        known = set(certain)
        others = [c for c in classes if c not in known]
        total = len(others) + names
        if limit is None or limit >= total:
            return PromptSample(list(classes), list(range(names)))
        drawn = self.positions(limit, total)
        labels = [*certain, *(others[i] for i in drawn if i < len(others))]
        further = [i - len(others) for i in drawn if i >= len(others)]
        return PromptSample(labels, further, len(certain), total)
