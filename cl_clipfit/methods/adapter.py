"""Methods that train a small module on frozen image features, beside frozen text features."""

from abc import abstractmethod

from torch import Tensor

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
