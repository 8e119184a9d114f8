"""Gaussian heads beside another classifier, stacked by exact leave-one-out losses.

Stacked generalisation (Wolpert 1992, Neural Networks 5): how much each classifier counts is
chosen on images that none has learned from. No image is kept for that: a Gaussian head is
scored without the image at hand in closed form, and the other classifier before it learns the
task. The losses of a grid of weights are summed over the stream, and only the sums are kept.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_clipfit.heads.fusion import POWERS, best_powers, fused, loss_tables
from cl_clipfit.heads.leave_one_out import lda_scores_and_distances, several
from cl_clipfit.heads.linear import GaussianHead, lda_head
from cl_clipfit.heads.membership import OTHER, SEEN, Membership, text_odds
from cl_clipfit.heads.projection import random_features, random_projection
from cl_clipfit.heads.statistics import Statistics

SHRINKAGES = (0.03, 0.1, 0.3, 0.9)
SPACES = ("features", "random features")
RATIOS = (0.125, 0.25, 0.5)  # weight of the head on random features beside the one on features
NEAR = 1, 1  # space and shrinkage of the distance that tells whether an image is of a class seen
# Images, and scores (images times classes), of a task whose losses are summed: enough for a choice
# among few.
MOST_IMAGES, MOST_SCORES = 5_000, 100_000


class Part(NamedTuple):
    """A Gaussian head in a sum of heads.

    Attributes:
        space: index into `SPACES`.
        shrinkage: index into `SHRINKAGES`.
        weight: of its scores in the sum.
    """

    space: int
    shrinkage: int
    weight: float


def _candidates() -> tuple[tuple[Part, ...], ...]:
    """Return one head on either space, or both; the wider space needs no less shrinkage."""
    every = range(len(SHRINKAGES))
    one = [(Part(space, s, 1.0),) for space in range(len(SPACES)) for s in every]
    both = [
        (Part(0, s, 1.0), Part(1, t, ratio)) for s in every for t in every[s:] for ratio in RATIOS
    ]
    return *one, *both


CANDIDATES = _candidates()


class Choice(NamedTuple):
    """What the summed losses chose.

    Attributes:
        parts: of the head.
        powers: of the other scores, and of the head's.
    """

    parts: tuple[Part, ...]
    powers: tuple[float, float]


class StackedHead:
    """Sums over a stream, the Gaussian head that they give, and its weight beside other scores.

    The head is linear discriminant analysis on the image features, or on random features of the
    rows, which hold class tokens too, or the weighted sum of both (`CANDIDATES`).

    Args:
        features: d, the length of an image feature, with which a row begins.
        width: M, the number of random features.
        seed: of the random projection.

    Attributes:
        statistics: of all rows so far, by space; empty before the first.
        losses: fp64 (candidates, P, P), summed leave-one-out losses by candidate, power of the
            other scores and power of the head's.
        membership: whether an image is of a class seen, by its distance in random features.
    """

    def __init__(self, features: int, width: int, seed: int) -> None:
        self.features, self.width, self.seed = features, width, seed
        self.statistics: list[Statistics] = []
        self.losses = torch.zeros(len(CANDIDATES), len(POWERS), len(POWERS), dtype=torch.float64)
        self.membership = Membership()
        self._heads: dict[tuple[int, int], GaussianHead] = {}
        self._projection: Tensor | None = None

    def embed(self, rows: Tensor, space: int) -> Tensor:
        """Map rows (N, D) into a space: (N, d) or (N, width)."""
        if SPACES[space] == "features":
            return rows[:, : self.features]
        if self._projection is None:
            self._projection = random_projection(rows.shape[1], self.width, self.seed)
        return random_features(rows, self._projection)

    def add(self, labels: Tensor, parts: Iterable[tuple[Tensor, Tensor]], classes: int) -> None:
        """Learn from the images of a task.

        Args:
            labels: (N,), those of all parts.
            parts: rows (n, D) on the CPU, see `CLIPClassifier.image_rows`, and scores (n, K) of the
                other classifier, which has learned from none of the N images.
            classes: K.
        """
        self._grow(classes)
        new, left_out = self._new(labels), self._left_out(labels, classes)
        kept, sums, sample, start = new | left_out, self.statistics, [], 0
        for rows, scores in parts:
            part = slice(start, start := start + len(rows))
            spaces = [self.embed(rows, space) for space in range(len(SPACES))]
            added = [Statistics.of(x, labels[part], classes) for x in spaces]
            sums = [a + b for a, b in zip(sums, added, strict=True)] if sums else added
            sample.append([values[kept[part]] for values in (*spaces, scores)])
        *embedded, scores = (torch.cat(values) for values in zip(*sample, strict=True))
        labels, new, left_out = labels[left_out], new[kept], left_out[kept]
        self._learn_others(embedded[-1][new], scores[new])
        self.statistics, self._heads = sums, {}
        self._calibrate([x[left_out] for x in embedded], labels, scores[left_out])

    def _grow(self, classes: int) -> None:
        """Make room for classes of a stream that follows."""
        if self.statistics and classes > len(self.statistics[0].counts):
            self.statistics = [sums.grown(classes) for sums in self.statistics]
            self._heads = {}  # of another shape, and so of other last bits

    def _new(self, labels: Tensor) -> Tensor:
        """Return which images (N,), all of new classes, stand for those of classes not seen."""
        if not self.statistics:
            return torch.zeros(len(labels), dtype=torch.bool)
        seen = self.statistics[0].seen
        return self._sample(~seen[labels], len(seen))

    def _left_out(self, labels: Tensor, classes: int) -> Tensor:
        """Return which images (N,) of a task are left out of the head that has learned them."""
        counts = torch.bincount(labels, minlength=classes)
        if self.statistics:
            counts += self.statistics[0].counts
        if (seen := int((counts > 0).sum())) < 2:
            return torch.zeros(len(labels), dtype=torch.bool)
        return self._sample(several(counts, labels), seen)

    def _sample(self, images: Tensor, classes: int) -> Tensor:
        """Return which of some images (N,), of all or of a sample if they are many."""
        places = images.nonzero().flatten()
        if len(places) <= (most := min(MOST_IMAGES, MOST_SCORES // classes)):
            return images
        draw = torch.Generator().manual_seed(self.seed)
        chosen = torch.zeros_like(images)
        chosen[places[torch.randperm(len(places), generator=draw)[:most]]] = True
        return chosen

    def _learn_others(self, x: Tensor, scores: Tensor) -> None:
        """Learn from images of new classes how those of classes not seen look."""
        if len(x):
            odds = text_odds(scores.double(), self.statistics[-1].seen)
            self.membership.add_losses(OTHER, odds, self._head(*NEAR).distances(x))

    def _calibrate(self, embedded: list[Tensor], labels: Tensor, scores: Tensor) -> None:
        """Add the losses of images by heads that are fitted without them."""
        if not len(labels):
            return
        seen = self.statistics[0].seen
        heads: dict[tuple[int, int], Tensor] = {}
        near = torch.empty(0)
        for space, (x, statistics) in enumerate(zip(embedded, self.statistics, strict=True)):
            results = lda_scores_and_distances(statistics, x, labels, SHRINKAGES)
            for i, (head, far) in enumerate(results):
                heads[space, i] = head[:, seen]
                near = far if (space, i) == NEAR else near
        targets = (seen.cumsum(0) - 1)[labels]
        sums = (
            torch.stack([part.weight * heads[part.space, part.shrinkage] for part in parts]).sum(0)
            for parts in CANDIDATES
        )
        self.losses += loss_tables(scores[:, seen], sums, targets)
        self.membership.add_moments(near)
        if not seen.all():
            self.membership.add_losses(SEEN, text_odds(scores.double(), seen), near)

    @property
    def choice(self) -> Choice:
        """The head and powers with the smallest sum of losses."""
        if not self.losses.any():  # one class, or one image per class: nothing to choose from
            return Choice(CANDIDATES[len(SHRINKAGES) - 1], (1.0, 1.0))
        best = int(self.losses.flatten(1).amin(1).argmin())
        return Choice(CANDIDATES[best], best_powers(self.losses[best]))

    def __call__(self, scores: Tensor, rows: Tensor, elsewhere: Tensor | None = None) -> Tensor:
        """Return log-probabilities (N, C) of the classes seen and of others.

        Others are classes of the stream without features yet, and any other names. Whether an image
        is of a class seen is decided by `scores`, each group being as likely before, and by its
        distance to the classes seen; among these, both classifiers decide, among the others
        `scores` alone.

        Args:
            scores: (N, C) of the other classifier; the first columns are the classes of the stream.
            rows: (N, D).
            elsewhere: (N, K) scores of the stream's classes for images that look like none that was
                learned; default: the images are taken to be of the stream's domain.
        """
        if not self.statistics:
            return scores
        (parts, powers), classes = self.choice, self.statistics[0].seen
        spaces = {space: self.embed(rows.cpu(), space) for space in range(len(SPACES))}
        heads = [w * self._head(space, shrinkage)(spaces[space]) for space, shrinkage, w in parts]
        head = torch.stack(heads).sum(0)[:, classes].to(scores)
        member = torch.zeros(scores.shape[1], dtype=torch.bool)
        member[: len(classes)] = classes
        member = member.to(scores.device)
        both = fused(scores[:, member], head, powers).log_softmax(1)
        if member.all():
            return both
        far = self._head(*NEAR).distances(spaces[NEAR[0]])
        if elsewhere is not None:
            both = self._in_any_domain(both, elsewhere[:, member[: elsewhere.shape[1]]], far)
        odds = self.membership.odds(text_odds(scores, member, powers[:1])[0], far, powers[0])
        result = torch.empty_like(scores)
        result[:, member] = both + F.logsigmoid(odds)[:, None]
        result[:, ~member] = scores[:, ~member].log_softmax(1) + F.logsigmoid(-odds)[:, None]
        return result

    def _in_any_domain(self, both: Tensor, elsewhere: Tensor, far: Tensor) -> Tensor:
        """Return log-probabilities (N, S) of the classes seen, of images of any domain.

        Args:
            both: log-probabilities of an image of the stream's domain.
            elsewhere: scores of an image of another one.
            far: (N,) distances to the nearest class seen.
        """
        near = self.membership.domain_odds(far, self.choice.powers[0]).to(both)[:, None]
        other = elsewhere.log_softmax(1) + F.logsigmoid(-near)
        return torch.logaddexp(both + F.logsigmoid(near), other)

    def _head(self, space: int, shrinkage: int) -> GaussianHead:
        """Return the head on a space, fitted once."""
        if (space, shrinkage) not in self._heads:
            fitted = lda_head(self.statistics[space], SHRINKAGES[shrinkage])
            self._heads[space, shrinkage] = fitted
        return self._heads[space, shrinkage]

    def size(self, classes: int) -> int:
        """Return about how many bytes `state_dict` holds once there are so many classes."""
        spaces = (self.features, self.width)
        return 8 * self.losses.numel() + sum(Statistics.size(dim, classes) for dim in spaces)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sums, from which everything else follows."""
        parts = zip(SPACES, self.statistics, strict=False)  # no statistics before the first task
        states = {space: statistics.state_dict() for space, statistics in parts}
        states["membership"] = self.membership.state_dict()
        return {"losses": self.losses} | {
            f"{part}/{name}": tensor
            for part, state in states.items()
            for name, tensor in state.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the sums.

        Raises:
            KeyError: one is missing.
            ValueError: they are not those of a stacked head.
        """
        tensors = {name: tensor.cpu() for name, tensor in state.items()}
        losses = tensors.pop("losses")
        *parts, membership = [
            {n.rpartition("/")[2]: t for n, t in tensors.items() if n.startswith(f"{part}/")}
            for part in (*SPACES, "membership")
        ]
        if losses.shape != self.losses.shape or (any(parts) and not all(parts)):
            raise ValueError("not the sums of a stacked head")
        self.membership.load_state_dict(membership)
        self.losses, self._heads = losses, {}
        self.statistics = [Statistics.from_state(part) for part in parts if part]
