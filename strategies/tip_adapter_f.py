"""Tip-Adapter-F: Tip-Adapter whose keys are trained, from the features they start as."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from cl_clipfit import (
    AdapterStrategy,
    Count,
    NotNegative,
    ScopeOptions,
    encode_images,
    keep_columns,
    read_samples,
)
from cl_clipfit.heads.key_values import key_value_scores

NAME = "tip-adapter-f"
GROUP = "adapters"
PAPER = "Zhang et al. 2022, arXiv 2207.09519 (ECCV), section 3.2"
NEEDS = "trained features of a few images of every class (exemplar features)"
EXEMPLARS = "features"
RECIPE = {"lr": 1e-3}  # how it was chosen: docs/results/defaults.md
PUBLISHED = {  # but the epsilon of its AdamW, 1e-4
    "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "batch_size": 256, "epochs": 20,
    "schedule": "cosine", "augmentation": "crop-flip", "crop_scale": 0.5,
}  # fmt: skip


class TipFOptions(ScopeOptions):
    """Settings of Tip-Adapter-F."""

    shots: Count = Field(16, description="keys of each class")
    weight: NotNegative = Field(1.17, description="alpha, of the votes; the paper's for ImageNet")
    sharpness: NotNegative = Field(1.0, description="beta; the paper's for ImageNet")


class TipAdapterF(AdapterStrategy):
    """100 f W + alpha sum_k exp(-beta (1 - f . k)); cross-entropy trains the keys, (K * shots, d).

    Before a task, the features of the first images of its classes become their keys. Keys of zeros
    have no image yet and stay so: with these alone it is zero-shot CLIP. All images of the task are
    trained on, of which the paper has only those that are keys; the keys of old classes train on,
    as far as their votes are ranked. 512 shots K parameters on ViT-B/16.
    """

    options_class = TipFOptions
    options: TipFOptions

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        classes, width = self.model.zero_shot_text_features.shape
        keys = torch.zeros(classes * self.options.shots, width, device=self.device)
        self.model.tip_keys = nn.Parameter(keys, requires_grad=False)
        labels = torch.arange(classes, device=self.device).repeat_interleave(self.options.shots)
        self.model.register_buffer("tip_labels", labels, persistent=False)

    @property
    def keys(self) -> nn.Parameter:
        """Return the keys, which belong to the model."""
        return cast(nn.Parameter, self.model.tip_keys)

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return the keys."""
        return [self.keys]

    def adapt(self, features: Tensor) -> Tensor:
        """Return the features as they are."""
        return features

    def zero_shot_point(self) -> dict[str, Tensor]:
        """Return keys of no image."""
        return {name: self.model.pretrained_values[name] for name in self.selection}

    @torch.no_grad()
    def before_task(self) -> None:
        """Fill the keys of the task's classes that have no image yet."""
        super().before_task()
        targets = torch.as_tensor(list(self.experience.dataset.targets))
        for label in self.task_classes:
            rows = torch.arange(self.options.shots) + label * self.options.shots
            free = rows[~self.keys[rows].any(1).cpu()]
            found = (targets == label).nonzero()[: len(free), 0].tolist()
            if found:
                images, _ = read_samples(self.experience.dataset, found)
                features = encode_images(self, images)
                self.keys[free[: len(found)]] = features.to(self.keys)

    def training_logits(self, images: Tensor) -> Tensor:
        """Add the votes for the classes ranked."""
        logits = super().training_logits(images)
        assert self.features is not None
        return logits + keep_columns(self._votes(self.features.image), self.label_space())

    def scores(self, images: Tensor) -> Tensor:
        """Score images (B, ...) by text and votes: (B, K)."""
        return super().scores(images) + self._votes(self.model.image_features(images))

    def _votes(self, features: Tensor) -> Tensor:
        """Return alpha times the votes for every class: (B, K)."""
        labels, classes = cast(Tensor, self.model.tip_labels), len(self.model.class_names)
        options = self.options
        votes = key_value_scores(features, self.keys, labels, classes, options.sharpness)
        return options.weight * votes
