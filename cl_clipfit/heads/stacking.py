"""A Gaussian head beside another classifier, stacked by exact leave-one-out losses.

Stacked generalisation (Wolpert 1992, Neural Networks 5): how much each of two classifiers counts is
chosen on images that neither has learned from. No image is kept for that: the Gaussian head is
scored without the image at hand in closed form, and the other classifier before it learns the
task. The losses of a grid of weights are summed over the stream, and only the sums are kept.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_clipfit.heads.fusion import POWERS, best_powers, fused, loss_table
from cl_clipfit.heads.leave_one_out import lda_scores_and_distances, scatter_eigen, several
from cl_clipfit.heads.linear import GaussianHead, lda_head
from cl_clipfit.heads.projection import random_features, random_projection
from cl_clipfit.heads.statistics import Statistics

SHRINKAGES = (0.03, 0.1, 0.3)
SPACES = ("features", "random features")
# Scores (images times classes) per call whose losses are summed: enough for a choice among few.
MOST_SCORES = 200_000
SPREAD = 5.0  # see `StackedHead._near`
TINY = 1e-12


@dataclass(frozen=True)
class Choice:
    """What the summed losses chose.

    Attributes:
        space: index into `SPACES`.
        shrinkage: index into `SHRINKAGES`.
        powers: of the other scores, and of the head's.
    """

    space: int
    shrinkage: int
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
        distances: fp64 (spaces, S, 3), count, sum and sum of squares of the logarithm of the
            leave-one-out distance of an image to the nearest class.
    """

    def __init__(self, features: int, width: int, seed: int) -> None:
        self.features, self.width, self.seed = features, width, seed
        self.statistics: list[Statistics] = []
        shape = len(SPACES), len(SHRINKAGES)
        self.losses = torch.zeros(*shape, len(POWERS), len(POWERS), dtype=torch.float64)
        self.distances = torch.zeros(*shape, 3, dtype=torch.float64)
        self._head: GaussianHead | None = None
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
        chosen = self._usable(labels)
        if len(chosen):
            for space, x in enumerate(embedded):
                self._calibrate(space, x[chosen], labels[chosen], scores[chosen])

    def _usable(self, labels: Tensor) -> Tensor:
        """Return the indices of images whose losses are summed: a sample if there are many."""
        statistics = self.statistics[0]
        usable = several(statistics, labels).nonzero().flatten()
        if (classes := int(statistics.seen.sum())) < 2:
            return usable[:0]
        draw = torch.Generator().manual_seed(self.seed)
        if len(usable) > (most := MOST_SCORES // classes):
            usable = usable[torch.randperm(len(usable), generator=draw)[:most]]
        return usable

    def _calibrate(self, space: int, x: Tensor, labels: Tensor, scores: Tensor) -> None:
        """Add the losses and distances of images by a head that is fitted without them."""
        statistics, eigen = self.statistics[space], scatter_eigen(self.statistics[space])
        seen = statistics.seen
        targets = (seen.cumsum(0) - 1)[labels]
        for i, shrinkage in enumerate(SHRINKAGES):
            head, far = lda_scores_and_distances(statistics, x, labels, shrinkage, eigen)
            self.losses[space, i] += loss_table(scores[:, seen], head[:, seen], targets)
            log = far.clamp(min=TINY).log()
            self.distances[space, i] += torch.stack([torch.ones_like(log), log, log * log]).sum(1)

    @property
    def choice(self) -> Choice:
        """The space, shrinkage and powers with the smallest sum of losses."""
        if not self.losses.any():  # one class, or one image per class: nothing to choose from
            return Choice(0, len(SHRINKAGES) - 1, (1.0, 1.0))
        space, index = divmod(int(self.losses.flatten(2).amin(2).argmin()), len(SHRINKAGES))
        return Choice(space, index, best_powers(self.losses[space, index]))

    def __call__(self, scores: Tensor, rows: Tensor) -> Tensor:
        """Return log-probabilities (N, C) of the classes seen and of others.

        Others are classes of the stream without features yet, and any other names. Whether an image
        is of a class seen is decided by `scores`, each group being as likely before, and by its
        distance to the classes seen; among these, both classifiers decide, among the others
        `scores` alone.

        Args:
            scores: (N, C) of the other classifier; the first columns are the classes of the stream.
            rows: (N, D).
        """
        if not self.statistics:
            return scores
        choice = self.choice
        statistics = self.statistics[choice.space]
        if self._head is None:
            self._head = lda_head(statistics, SHRINKAGES[choice.shrinkage])
        x = self.embed(rows.cpu(), choice.space)
        member = torch.zeros(scores.shape[1], dtype=torch.bool)
        member[: len(statistics.seen)] = statistics.seen
        seen, other = (m.nonzero().flatten().to(scores.device) for m in (member, ~member))
        inside, outside = scores[:, seen], scores[:, other]
        head = self._head(x)[:, statistics.seen].to(scores)
        both = fused(inside, head, choice.powers).log_softmax(1)
        if not len(other):
            return both.new_empty(scores.shape).index_copy(1, seen, both)
        power = choice.powers[0]
        odds = _log_mean_exp(power * inside) - _log_mean_exp(power * outside)
        odds = odds + self._near(self._head.distances(x), choice).to(scores)
        result = torch.empty_like(scores)
        result[:, seen] = both + F.logsigmoid(odds)[:, None]
        result[:, other] = outside.log_softmax(1) + F.logsigmoid(-odds)[:, None]
        return result

    def _near(self, distances: Tensor, choice: Choice) -> Tensor:
        """Return how much more likely distances (N,) are for classes seen, as log-odds (N,).

        The logarithm of a distance is normal for images of classes seen, with the moments of the
        leave-one-out ones; those below the mean count as the mean. For other images it is
        spread evenly over `SPREAD` standard deviations.
        """
        count, total, squares = self.distances[choice.space, choice.shrinkage].tolist()
        mean = total / max(count, 1)
        deviation = max(squares / max(count, 1) - mean**2, 0.0) ** 0.5
        if deviation < TINY:  # too few images
            return torch.zeros_like(distances)
        beyond = ((distances.clamp(min=TINY).log() - mean) / deviation).clamp(min=0)
        return math.log(SPREAD / math.sqrt(2 * math.pi)) - beyond.square() / 2

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sums, from which everything else follows."""
        return {"losses": self.losses, "distances": self.distances} | {
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
        losses, distances = tensors.pop("losses"), tensors.pop("distances")
        parts = [
            {n.rpartition("/")[2]: t for n, t in tensors.items() if n.startswith(f"{space}/")}
            for space in SPACES
        ]
        right = losses.shape == self.losses.shape and distances.shape == self.distances.shape
        if not right or (any(parts) and not all(parts)):
            raise ValueError("not the sums of a stacked head")
        self.losses, self.distances, self._head = losses, distances, None
        self.statistics = [Statistics.from_state(part) for part in parts if part]


def _log_mean_exp(scores: Tensor) -> Tensor:
    return scores.logsumexp(1) - math.log(scores.shape[1])
