"""Classifiers in closed form on frozen zero-shot image features: no gradient, no old image."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cl_clipfit.heads.linear import LinearHead
from cl_clipfit.heads.statistics import Statistics
from cl_clipfit.runtime.out_of_memory import encode_images
from cl_clipfit.training.features import read_samples
from cl_clipfit.training.strategy import CLIPStrategy

_CHUNK = 1024  # images that are read and encoded together


class ClosedFormStrategy(CLIPStrategy):
    """Add up statistics of the features of every task, and fit a head to their sum.

    A method implements `fit`, and `embed` if its head works on other features than those of the
    image tower. Before the first task it is zero-shot CLIP; classes not seen yet are never chosen
    after it. Probes are scored zero-shot.

    Attributes:
        statistics: sums over all images so far; None before the first task.
        head: scores features (N, D); None before the first task.
    """

    learning = "closed-form"
    compares_text = False
    towers = ()
    statistics: Statistics | None = None
    head: Callable[[Tensor], Tensor] | None = None

    @abstractmethod
    def fit(self, statistics: Statistics) -> LinearHead:
        """Return the head for the statistics of all images so far."""

    def embed(self, features: Tensor) -> Tensor:
        """Map image features (N, d) of unit length to those of the head (N, D); default: none."""
        return features

    def add_experience(self) -> None:
        """Add the statistics of the images of an experience."""
        data, classes = self.experience.dataset, len(self.model.class_names)
        for start in range(0, len(data), _CHUNK):
            images, labels = read_samples(data, range(start, min(start + _CHUNK, len(data))))
            features = self.embed(encode_images(self, images))
            added = Statistics.of(features, labels, classes)
            self.statistics = added if self.statistics is None else self.statistics + added

    def after_task(self) -> None:
        """Fit the head to everything seen so far."""
        assert self.statistics is not None
        self.head = self.fit(self.statistics)

    def scores(self, images: Tensor) -> Tensor:
        """Score images (B, ...) by the head: (B, K); zero-shot before the first task."""
        if self.head is None:
            return super().scores(images)
        return self.head_scores(self.model.image_features(images))

    def head_scores(self, features: Tensor) -> Tensor:
        """Score image features (B, d) of unit length by the head: (B, K), in fp32."""
        assert self.head is not None
        return self.head(self.embed(features.cpu())).to(features.device, torch.float32)

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics, from which the head is fitted again."""
        return {} if self.statistics is None else self.statistics.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the statistics and the head."""
        if state:
            self.statistics = Statistics.from_state({n: t.cpu() for n, t in state.items()})
            self.head = self.fit(self.statistics)

    def name_scores(self, images: Tensor, names: Tensor) -> Tensor:
        """Score images against other names (P, d): (B, P); -inf if the head alone classifies."""
        scores = super().name_scores(images, names)
        if self.head is None or self.compares_text:
            return scores
        return torch.full_like(scores, -torch.inf)
