"""Tip-Adapter: features of a few images of each class vote beside the zero-shot scores."""

from collections.abc import Callable, Mapping

import torch
from pydantic import Field
from torch import Tensor

from cl_clipfit import ClosedFormStrategy, Count, NotNegative, Options
from cl_clipfit.heads.key_values import key_value_scores

NAME = "tip-adapter"
GROUP = "adapters"
PAPER = "Zhang et al. 2022, arXiv 2207.09519 (ECCV), eq. 3 to 6"
NEEDS = "features of a few images of every class (exemplar features)"
EXEMPLARS = "features"


class TipOptions(Options):
    """Settings of Tip-Adapter."""

    shots: Count = Field(16, description="images of each class whose features are kept")
    weight: NotNegative = Field(1.17, description="alpha, of the votes; the paper's for ImageNet")
    sharpness: NotNegative = Field(1.0, description="beta; the paper's for ImageNet")


class TipAdapter(ClosedFormStrategy):
    """100 f W + alpha sum_k exp(-beta (1 - f . k)) of the keys k of each class; nothing trains.

    The first images of each class fill its memory, in the order of the stream's data. The paper
    searches alpha and beta on held-out images of every data set, and averages each key over ten
    random crops; here they are settings, and a key is the feature of the image as it is.
    """

    compares_text = True
    options_class = TipOptions
    options: TipOptions
    extends = True
    keys: Tensor | None = None
    key_labels: Tensor | None = None

    def add(self, features: Tensor, labels: Tensor, classes: int) -> None:
        """Keep the features of the first images of each class."""
        keys = features[:0] if self.keys is None else self.keys
        kept = labels[:0] if self.key_labels is None else self.key_labels
        room = self.options.shots - kept.bincount(minlength=classes)
        chosen = [
            (labels == label).nonzero()[: max(0, int(room[label])), 0]
            for label in labels.unique().tolist()
        ]
        new = torch.cat(chosen)
        self.keys = torch.cat([keys, features[new]])
        self.key_labels = torch.cat([kept, labels[new]])

    def fit(self) -> Callable[[Tensor], Tensor]:
        """Return the votes of the memory, -inf for classes without a key."""
        keys, labels, classes = self.keys, self.key_labels, len(self.model.class_names)
        assert keys is not None and labels is not None
        sharpness, absent = self.options.sharpness, labels.bincount(minlength=classes) == 0

        def votes(rows: Tensor) -> Tensor:
            scores = key_value_scores(rows, keys, labels, classes, sharpness)
            return scores.masked_fill(absent, -torch.inf)

        return votes

    def scores(self, images: Tensor) -> Tensor:
        """Score images (B, ...): (B, K)."""
        features = self.model.image_features(images)
        text = self.model.logits(features, self.model.text_features())
        return (
            text if self.head is None else text + self.options.weight * self.head_scores(features)
        )

    def head_state(self) -> dict[str, Tensor]:
        """Return the memory."""
        if self.keys is None or self.key_labels is None:
            return {}
        return {"keys": self.keys, "labels": self.key_labels}

    def head_bytes(self, images: int, classes: int) -> int:
        """Return the size of the memory, if no class has less than its share of images."""
        keys = min(images, self.options.shots * classes)
        return keys * (4 * self.head_width + 8)

    def load_head_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the memory."""
        if state:
            self.keys, self.key_labels = state["keys"].cpu(), state["labels"].cpu()
            self.head = self.fit()
