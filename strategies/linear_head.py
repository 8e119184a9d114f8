"""A linear classifier on frozen image features, which starts at zero-shot CLIP."""

from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn

from cl_clipfit import CLIPStrategy, ScopeOptions, StepFeatures, label_index

NAME = "linear-head"
GROUP = "adapters"
PAPER = "Wortsman et al. 2022, arXiv 2109.01903 (CVPR)"
NEEDS = "nothing of earlier tasks"
# No PUBLISHED: a recipe cannot express its warm-up over 500 steps and its gradient clipping.
RECIPE = {"lr": 3e-4}  # how it was chosen: docs/clipfit.md
RECIPES = {
    # Chosen by average accuracy on held-out training images, mean of two class orders: 86.4
    # (zero-shot 81.9) and 74.5 (zero-shot 67.0).
    "split-digits": {"lr": 3e-3},
    "split-shapes100": {"lr": 1e-3},
}


class LinearHead(CLIPStrategy):
    """Train `model.head` (K, d), whose rows start as the zero-shot text features.

    Logits are logit_scale * image features @ head.T; rows are not normalised again.
    Only the stream's classes have rows: probes are scored zero-shot, which never changes.

    Raises:
        ValueError: `class_names` are missing, or the model already has a head.
    """

    compares_text = False
    towers = ()
    options_class = ScopeOptions
    options: ScopeOptions

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not self.model.class_names:
            raise ValueError("linear-head needs the class_names of the whole stream")
        if hasattr(self.model, "head"):
            raise ValueError("this model already has a head: load the model again")
        start = self.model.zero_shot_text_features.clone()
        self.model.head = nn.Parameter(start, requires_grad=False)

    @property
    def head(self) -> nn.Parameter:
        """Return the weights (K, d), which belong to the model."""
        return cast(nn.Parameter, self.model.head)

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return the head."""
        if len(self.head) != len(self.model.class_names):
            raise ValueError("linear-head needs all classes from the start; some were added later")
        return [self.head]

    def training_logits(self, images: Tensor) -> Tensor:
        """Encode only the images; `features.text` holds rows of the head, not normalised."""
        classes = list(self.label_space())
        image = self.model.image_features(images)
        rows = self.head.index_select(0, label_index(classes, self.head.device))
        self.features = StepFeatures(image, rows, classes)
        return self._spread(self.model.logits(image, rows), classes)

    def scores(self, images: Tensor) -> Tensor:
        """Score images (B, ...) with the head: (B, K)."""
        return self.model.logits(self.model.image_features(images), self.head)

    def zero_shot_point(self) -> dict[str, Tensor]:
        """Return the zero-shot text features."""
        return {name: self.model.pretrained_values[name] for name in self.selection}
