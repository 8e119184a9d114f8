"""Classifiers in closed form on frozen zero-shot image features: no gradient, no old image."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from cl_clipfit.config.options import Count, Options
from cl_clipfit.heads.kernel_ridge import KernelRidge
from cl_clipfit.heads.leave_one_out import ridge_losses
from cl_clipfit.heads.linear import LinearHead, ridge_head
from cl_clipfit.heads.projection import random_features, random_projection
from cl_clipfit.heads.recursive import RecursiveRidge
from cl_clipfit.heads.statistics import Statistics
from cl_clipfit.runtime.out_of_memory import encode_images
from cl_clipfit.runtime.processes import alone, summed
from cl_clipfit.runtime.shares import gathered, share
from cl_clipfit.training.features import read_samples
from cl_clipfit.training.strategy import CLIPStrategy

PENALTIES = tuple(10.0**exponent for exponent in range(-4, 5))
_CHUNK = 1024  # images that are read and encoded together


def encode_experience(
    strategy: CLIPStrategy, class_tokens: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows (N, D) of the encoded images of an experience and their labels (N,), in parts.

    Args:
        strategy: with the experience.
        class_tokens: as in `encode_images`.
    """
    data = strategy.experience.dataset
    for start in range(0, len(data), _CHUNK):
        places = range(start, min(start + _CHUNK, len(data)))
        # Of several processes, each reads and encodes its share.
        images, labels = read_samples(data, places[share(len(places))])
        with alone():
            rows = encode_images(strategy, images, class_tokens)
        yield gathered(rows, len(places)), gathered(labels, len(places))


def summed_statistics(features: Tensor, labels: Tensor, classes: int) -> Statistics:
    """Return the statistics of features that every process has: each sums a share of them.

    Args:
        features: (N, D).
        labels: (N,).
        classes: K; see `Statistics.of`.
    """
    mine = share(len(features))
    if mine == slice(None):
        return Statistics.of(features, labels, classes)
    own = Statistics.of(features[mine], labels[mine], max(classes, int(labels.max()) + 1))
    return Statistics(*summed(own.state_dict().values()))


class ClosedFormStrategy(CLIPStrategy):
    """Learn from the encoded images of every task once, and replace the head after it.

    A method implements `add` and `fit`, the state, and `embed` if its head works on other features
    than the rows of `CLIPClassifier.image_rows`, which have as many class tokens as `class_tokens`
    says. Before the first task it is zero-shot CLIP; classes not seen yet are never chosen after
    it. Probes are scored zero-shot.

    Attributes:
        head: scores features (N, M); None before the first task.
    """

    learning = "closed-form"
    compares_text = False
    towers = ()
    head: Callable[[Tensor], Tensor] | None = None

    @property
    def head_options(self) -> Any:
        """The settings of the head; those of the method, unless another one trains the tower."""
        return self.options

    @property
    def head_width(self) -> int:
        """M, the length of a feature of the head; that of an image unless `embed` changes it."""
        return self.model.zero_shot_text_features.shape[1]

    @abstractmethod
    def add(self, features: Tensor, labels: Tensor, classes: int) -> None:
        """Learn from features (N, M) of the head with labels (N,), of `classes` in the stream."""

    @abstractmethod
    def fit(self) -> Callable[[Tensor], Tensor]:
        """Return the head for everything so far: it scores features (N, M)."""

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, from which the head follows."""
        return self.head_state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the sums and the head."""
        self.load_head_state(state)

    def embed(self, rows: Tensor) -> Tensor:
        """Map rows (N, D) of encoded images to the features of the head (N, M); default: none."""
        return rows

    def add_experience(self) -> None:
        """Add the images of an experience."""
        for rows, labels in encode_experience(self, self.class_tokens):
            self.add(self.embed(rows), labels, len(self.model.class_names))

    def after_task(self) -> None:
        """Fit the head to everything seen so far."""
        self.head = self.fit()

    def scores(self, images: Tensor) -> Tensor:
        """Score images (B, ...) by the head: (B, K); zero-shot before the first task."""
        if self.head is None:
            return super().scores(images)
        return self.head_scores(self.model.image_rows(images, self.class_tokens))

    def name_scores(self, images: Tensor, names: Tensor) -> Tensor:
        """Score images against other names (P, d): (B, P); -inf if the head alone classifies."""
        scores = super().name_scores(images, names)
        if self.head is None or self.compares_text:
            return scores
        return torch.full_like(scores, -torch.inf)

    def head_scores(self, rows: Tensor) -> Tensor:
        """Score rows (B, D) of encoded images by the head: (B, K), in fp32."""
        assert self.head is not None
        return self.head(self.embed(rows.cpu())).to(rows.device, torch.float32)


class StatisticsStrategy(ClosedFormStrategy):
    """Fit the head to `Statistics`, sums over the stream that are exact in any order of tasks.

    A method implements `solve`.

    Attributes:
        statistics: sums over all images so far; None before the first task.
    """

    statistics: Statistics | None = None

    @abstractmethod
    def solve(self, statistics: Statistics) -> Callable[[Tensor], Tensor]:
        """Return the head for the statistics of all images so far."""

    def add(self, features: Tensor, labels: Tensor, classes: int) -> None:
        """Add to the statistics."""
        present, places = labels.unique(return_inverse=True)
        added = summed_statistics(features, places, len(present))
        before = self.statistics
        before = Statistics.empty(features.shape[1], classes) if before is None else before
        self.statistics = before.take_in(added, present, classes)

    def fit(self) -> Callable[[Tensor], Tensor]:
        """Return the head of the statistics."""
        assert self.statistics is not None
        return self.solve(self.statistics)

    def head_state(self) -> dict[str, Tensor]:
        """Return the statistics, from which the head is fitted again."""
        return {} if self.statistics is None else self.statistics.state_dict()

    def head_bytes(self, images: int, classes: int) -> int:
        """Return the size of the statistics."""
        return Statistics.size(self.head_width, len(self.model.class_names))

    def load_head_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the statistics and the head."""
        if state:
            statistics = Statistics.from_state({n: t.cpu() for n, t in state.items()})
            self.statistics = statistics.grown(len(self.model.class_names))
            self.head = self.fit()


class RandomFeaturesOptions(Options):
    """Settings of methods on random features."""

    width: Count = Field(2000, description="random features M; the sums hold M^2 numbers")


class RandomFeaturesStrategy(ClosedFormStrategy):
    """Fit the head to random features relu(x R), with R from the run's seed."""

    options_class = RandomFeaturesOptions
    _projection: Tensor | None = None

    @property
    def head_width(self) -> int:
        """M, the number of random features."""
        return int(self.head_options.width)

    def projection(self, dim: int) -> Tensor:
        """Return R (dim, width)."""
        if self._projection is None:
            width = self.head_options.width
            self._projection = random_projection(dim, width, self.seeds.init)
        return self._projection

    def embed(self, rows: Tensor) -> Tensor:
        """Map rows (N, D) to random features (N, width)."""
        return random_features(rows, self.projection(rows.shape[1]))


class RandomRidgeStrategy(RandomFeaturesStrategy, StatisticsStrategy):
    """Ridge regression of one-hot targets on random features.

    The penalty is the one of `PENALTIES` with the smallest squared leave-one-out error, which is
    computed exactly for the images that are added, and summed over the stream.

    Attributes:
        errors: these sums by penalty, fp64 (P,); None before the first task.
    """

    errors: Tensor | None = None

    def add(self, features: Tensor, labels: Tensor, classes: int) -> None:
        """Add to the statistics, and the errors to the sums that choose the penalty."""
        super().add(features, labels, classes)
        assert self.statistics is not None
        errors = ridge_losses(self.statistics, features, labels, PENALTIES)
        self.errors = errors if self.errors is None else self.errors + errors

    @property
    def penalty(self) -> float:
        """The penalty with the smallest sum of errors."""
        assert self.errors is not None
        return PENALTIES[int(self.errors.argmin())]

    def solve(self, statistics: Statistics) -> LinearHead:
        """Return ridge regression with the chosen penalty."""
        return ridge_head(statistics, self.penalty)

    def head_state(self) -> dict[str, Tensor]:
        """Return the statistics and the sums of errors."""
        return super().head_state() | ({} if self.errors is None else {"errors": self.errors})

    def load_head_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore them and the head."""
        self.errors = state["errors"].cpu() if state else None
        super().load_head_state({n: t for n, t in state.items() if n != "errors"})


class RecursiveStrategy(RandomFeaturesStrategy):
    """Update a solution with every batch of features, on random ones unless `embed` says otherwise.

    A method implements `start`.

    Attributes:
        solution: of all images so far; None before the first task.
    """

    solution: RecursiveRidge | KernelRidge | None = None

    @abstractmethod
    def start(self, width: int, classes: int) -> RecursiveRidge | KernelRidge:
        """Return the solution for no image, for features (N, width) of so many classes."""

    def add(self, features: Tensor, labels: Tensor, classes: int) -> None:
        """Update the solution."""
        solution = self.solution or self.start(features.shape[1], classes)
        self.solution = solution.updated(features, labels)

    def fit(self) -> Callable[[Tensor], Tensor]:
        """Return the classifier of the solution."""
        assert self.solution is not None
        return self.solution.head

    def head_state(self) -> dict[str, Tensor]:
        """Return the tensors of the solution."""
        state = vars(self.solution) if self.solution else {}
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}

    def head_bytes(self, images: int, classes: int) -> int:
        """Return the size of the solution: as large as statistics."""
        return Statistics.size(self.head_width, len(self.model.class_names))

    def load_head_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the solution and the head."""
        if state:
            tensors: dict[str, Any] = {name: value.cpu() for name, value in state.items()}
            solution = replace(self.start(1, 1), **tensors)
            self.solution = solution.grown(len(self.model.class_names))
            self.head = self.fit()
