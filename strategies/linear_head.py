"""A linear classifier on frozen image features, which starts at zero-shot CLIP."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast

from pydantic import Field
from torch import Tensor, nn

from cl_clipfit import CLIPStrategy, Options
from cl_clipfit.training.features import StepFeatures, label_index

NAME = "linear-head"
PAPER = "Wortsman et al. 2022, arXiv 2109.01903 (CVPR)"
NEEDS = "nothing of earlier tasks"
# No PUBLISHED: its warm-up over 500 steps and its clipped gradients are no settings of a recipe.
RECIPE = {"lr": 1e-4}  # not tuned where RECIPES says nothing
RECIPES = {
    # The best average accuracy on held-out training images, the mean of two class orders: 86.4
    # (zero-shot 81.9), and 74.5 (zero-shot 67.0).
    "split-digits": {"lr": 3e-3},
    "split-shapes100": {"lr": 1e-3},
}


class LinearHeadOptions(Options):
    """Settings of the linear head."""

    ce_scope: Literal["task", "seen"] = Field("task", description="classes the cross-entropy ranks")


class LinearHead(CLIPStrategy):
    """Train `model.head` (K, d), whose rows start as the zero-shot text features.

    Logits are logit_scale * image features @ head.T; rows are not brought to unit length again.
    Only the stream's classes have rows: probes are asked zero-shot, which never changes.

    Raises:
        ValueError: no `class_names`, or a model that has a head already.
    """

    compares_text = False
    towers = ()
    options_class = LinearHeadOptions
    options: LinearHeadOptions

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not self.model.class_names:
            raise ValueError("linear-head needs the class_names of the whole stream")
        if hasattr(self.model, "head"):
            raise ValueError("this model has a head already: load the model anew")
        start = self.model.zero_shot_text_features.clone()
        self.model.head = nn.Parameter(start, requires_grad=False)

    @property
    def head(self) -> nn.Parameter:
        """The weights (K, d), which belong to the model."""
        return cast(nn.Parameter, self.model.head)

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return the head."""
        if len(self.head) != len(self.model.class_names):
            raise ValueError("linear-head needs all classes at its start, some were added later")
        return [self.head]

    def label_space(self) -> Sequence[int]:
        """Return the classes of the task, or those seen."""
        return self.task_classes if self.options.ce_scope == "task" else self.seen_classes

    def training_logits(self, images: Tensor) -> Tensor:
        """Encode the images alone; `features.text` holds rows of the head, of any length."""
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
