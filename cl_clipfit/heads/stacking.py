"""A Gaussian head beside another classifier, stacked by exact leave-one-out losses.

Stacked generalisation (Wolpert 1992, Neural Networks 5): how much each of two classifiers counts is
chosen on images that neither has learned from. No image is kept for that: the Gaussian head is
scored without the image at hand in closed form, and the other classifier before it learns the
task. The losses of a grid of weights are summed over the stream, and only the sums are kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_clipfit.heads.fusion import POWERS, best_powers, fused, loss_table
from cl_clipfit.heads.leave_one_out import lda_scores, scatter_eigen, several
from cl_clipfit.heads.linear import LinearHead, lda_head
from cl_clipfit.heads.projection import random_features, random_projection
from cl_clipfit.heads.statistics import Statistics

SHRINKAGES = (0.03, 0.1, 0.3)
SPACES = ("features", "random features")
# Scores (images times classes) per call whose losses are summed: enough for a choice among few.
MOST_SCORES = 200_000


@dataclass(frozen=True)
class Choice:
    """What the summed losses chose.

    Attributes:
        space: index into `SPACES`.
        shrinkage: of the covariance.
        powers: of the other scores, and of the head's.
    """

    space: int
    shrinkage: float
    powers: tuple[float, float]


class StackedHead:
    """Sums over a stream, the Gaussian head that they give, and its weight beside other scores.

    There are two candidates for the space of the head: the image features, or random features of
    the rows, which hold class tokens too. Each has its statistics and its losses.

    Args:
        features: d, the length of an image feature, with which a row begins.
        width: M, the number of random features.
        seed: of the random projection.

    Attributes:
        statistics: of all rows so far, by space; empty before the first.
        losses: fp64 (spaces, S, P, P), summed leave-one-out losses by space, shrinkage, power of
            the other scores and power of the head's.
    """

    def __init__(self, features: int, width: int, seed: int) -> None:
        self.features, self.width, self.seed = features, width, seed
        self.statistics: list[Statistics] = []
        shape = len(SPACES), len(SHRINKAGES), len(POWERS), len(POWERS)
        self.losses = torch.zeros(shape, dtype=torch.float64)
        self._head: LinearHead | None = None
        self._projection: Tensor | None = None

    def embed(self, rows: Tensor, space: int) -> Tensor:
        """Map rows (N, D) into a space: (N, d) or (N, width)."""
        if SPACES[space] == "features":
            return rows[:, : self.features]
        if self._projection is None:
            self._projection = random_projection(rows.shape[1], self.width, self.seed)
        return random_features(rows, self._projection)

    def add(self, rows: Tensor, labels: Tensor, scores: Tensor) -> None:
        """Learn from the images of a task, or from a part of them.

        Args:
            rows: (N, D) on the CPU; see `CLIPClassifier.image_rows`.
            labels: (N,).
            scores: (N, K) of the other classifier, which has not learned from these images.
        """
        embedded = [self.embed(rows, space) for space in range(len(SPACES))]
        added = [Statistics.of(x, labels, scores.shape[1]) for x in embedded]
        before = self.statistics or [Statistics.empty(x.shape[1]) for x in embedded]
        self.statistics = [one + more for one, more in zip(before, added, strict=True)]
        self._head = None
        for space, x in enumerate(embedded):
            self.losses[space] += _losses(self.statistics[space], x, labels, scores, self.seed)

    @property
    def choice(self) -> Choice:
        """The space, shrinkage and powers with the smallest sum of losses."""
        if not self.losses.any():  # one class, or one image per class: nothing to choose from
            return Choice(0, SHRINKAGES[-1], (1.0, 1.0))
        space, index = divmod(int(self.losses.flatten(2).amin(2).argmin()), len(SHRINKAGES))
        return Choice(space, SHRINKAGES[index], best_powers(self.losses[space, index]))

    def __call__(self, scores: Tensor, rows: Tensor) -> Tensor:
        """Return the scores of both, (N, K): log-probabilities plus a constant per row.

        The probability that `scores` give to all classes seen together is divided among them by
        both classifiers; each other class keeps its own.

        Args:
            scores: (N, K) of the other classifier; classes without features are not seen yet.
            rows: (N, D).
        """
        if not self.statistics:
            return scores
        choice = self.choice
        statistics = self.statistics[choice.space]
        if self._head is None:
            self._head = lda_head(statistics, choice.shrinkage)
        seen = statistics.seen.nonzero().flatten()
        head = self._head(self.embed(rows.cpu(), choice.space))[:, seen].to(scores)
        seen = seen.to(scores.device)
        inside = scores[:, seen]
        shared = fused(inside, head, choice.powers).log_softmax(1)
        return scores.index_copy(1, seen, inside.logsumexp(1, keepdim=True) + shared)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sums, from which everything else follows."""
        return {"losses": self.losses} | {
            f"{space}/{name}": tensor
            for space, statistics in zip(SPACES, self.statistics, strict=False)
            for name, tensor in statistics.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the sums.

        Raises:
            ValueError: they are not those of a stacked head.
        """
        tensors = {name: tensor.cpu() for name, tensor in state.items()}
        losses = tensors.pop("losses")
        parts = [
            {n.rpartition("/")[2]: t for n, t in tensors.items() if n.startswith(f"{space}/")}
            for space in SPACES
        ]
        if losses.shape != self.losses.shape or not (all(parts) or not any(parts)):
            raise ValueError("not the sums of a stacked head")
        self.losses, self._head = losses, None
        self.statistics = [Statistics.from_state(part) for part in parts if part]


def _losses(
    statistics: Statistics, x: Tensor, labels: Tensor, scores: Tensor, seed: int
) -> Tensor | float:
    """Return the losses (S, P, P) of images by both classifiers, neither having learned them.

    Args:
        statistics: of all features, `x` among them.
        x: (N, D), features of the images.
        labels: (N,).
        scores: (N, K) of the other classifier.
        seed: of the draw of images if there are very many.
    """
    seen, usable = statistics.seen, several(statistics, labels).nonzero().flatten()
    if len(usable) > (most := MOST_SCORES // max(int(seen.sum()), 1)):
        draw = torch.Generator().manual_seed(seed)
        usable = usable[torch.randperm(len(usable), generator=draw)[:most]]
    if int(seen.sum()) < 2 or not len(usable):
        return 0.0
    targets = (seen.cumsum(0) - 1)[labels[usable]]
    x, labels, other, eigen = x[usable], labels[usable], scores[usable], scatter_eigen(statistics)
    tables = [
        loss_table(other[:, seen], lda_scores(statistics, x, labels, s, eigen)[:, seen], targets)
        for s in SHRINKAGES
    ]
    return torch.stack(tables)
