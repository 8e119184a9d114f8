"""Methods that train a small module on frozen image features, beside frozen text features."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_clipfit.training.features import StepFeatures, label_index
from cl_clipfit.training.strategy import CLIPStrategy


class AdapterStrategy(CLIPStrategy):
    """Compare adapted image features with the zero-shot text features; both towers stay frozen.

    A method implements `adapt` and `trainable`, and sets its parameters on `self.model`. Images of
    probes are adapted too, since the adapter is part of how images are encoded.
    """

    towers = ()
    compares_text = False  # prompts are encoded once, before training

    @abstractmethod
    def adapt(self, features: Tensor) -> Tensor:
        """Map image features (B, d) of unit length to others, (B, d), of unit length too."""

    def training_logits(self, images: Tensor) -> Tensor:
        """Encode images, adapt them, and compare them with the classes ranked."""
        classes = list(self.label_space())
        image = self.adapt(self.model.image_features(images))
        table = self.model.zero_shot_text_features
        text = table.index_select(0, label_index(classes, table.device))
        self.features = StepFeatures(image, text, classes)
        return self._spread(self.model.logits(image, text), classes)

    def scores(self, images: Tensor) -> Tensor:
        """Score images (B, ...) against the zero-shot text features: (B, K)."""
        features = self.adapt(self.model.image_features(images))
        return self.model.logits(features, self.model.zero_shot_text_features)

    def name_features(self, images: Tensor) -> Tensor:
        """Encode images (B, ...) and adapt them: (B, d)."""
        return self.adapt(self.model.image_features(images))


class LinearAdapterStrategy(AdapterStrategy):
    """f = A e(x) / |A e(x)|, with A (d, d) that starts as the identity; without a bias.

    262,144 parameters on ViT-B/16. In a task, `matrix_before` is A as it was before it.
    """

    matrix_before: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        start = self.first_matrix(self.model.zero_shot_text_features.shape[1]).to(self.device)
        self.model.linear_adapter = nn.Parameter(start, requires_grad=False)

    def first_matrix(self, dim: int) -> Tensor:
        """Return A (dim, dim) as it starts."""
        return torch.eye(dim)

    @property
    def matrix(self) -> nn.Parameter:
        """Return A (d, d), which belongs to the model."""
        return cast(nn.Parameter, self.model.linear_adapter)

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return A."""
        return [self.matrix]

    def adapt(self, features: Tensor) -> Tensor:
        """Map features by A, to unit length."""
        return F.normalize(features @ self.matrix.T, dim=-1)

    def zero_shot_point(self) -> dict[str, Tensor]:
        """Return the identity."""
        return {name: torch.eye(len(p)).to(p) for name, p in self.selection.items()}

    def before_task(self) -> None:
        """Keep A as it is before the task."""
        super().before_task()
        self.matrix_before = self.matrix.detach().clone()
