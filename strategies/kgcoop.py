"""KgCoOp: learned first words of the prompt, with the text features held to zero-shot."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from cl_clipfit.config import NotNegative
from cl_clipfit.losses.anchors import cosine_distance
from cl_clipfit.prompting import PromptOptions, PromptStrategy

NAME = "kgcoop"
PAPER = "Yao et al. 2023, arXiv 2303.13283 (CVPR)"
NEEDS = "nothing of earlier tasks"
RECIPE = {"optimizer": "sgd", "lr": 2e-3}  # not tuned where RECIPES says nothing
RECIPES = {
    # The best average accuracy on held-out training images, the mean of two class orders: 83.2
    # (zero-shot 81.9; ranking the task's own classes 82.7), and 73.6 (zero-shot 67.0).
    "split-digits": {"optimizer": "adamw", "lr": 3e-3, "ce_scope": "seen"},
    "split-shapes100": {"optimizer": "adamw", "lr": 1e-2},
}
PUBLISHED = {
    "optimizer": "sgd", "lr": 2e-3, "momentum": 0.9, "weight_decay": 5e-4,
    "batch_size": 128, "drop_last": True, "epochs": 100,
    "schedule": "epoch-cosine", "warmup_epochs": 1, "warmup_lr": 1e-5,
    "augmentation": "crop-flip", "crop_scale": 0.08,
    "ce_scope": "task", "kd_weight": 8.0, "kd_scope": "seen",
}  # fmt: skip


class KgCoOpOptions(PromptOptions):
    """KgCoOp's own settings."""

    kd_weight: NotNegative = Field(8.0, description="weight of the distance to zero-shot text")
    kd_scope: Literal["task", "seen"] = Field("seen", description="class prompts that are held")


class KgCoOp(PromptStrategy):
    """Cross-entropy + kd_weight * (1 - mean cos) of the class prompts to those of zero-shot."""

    options: KgCoOpOptions

    def text_space(self) -> Sequence[int]:
        """Return the classes that are ranked or held."""
        held = self.options.kd_weight > 0 and self.options.kd_scope == "seen"
        return self.seen_classes if held else self.label_space()

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Add the distance to the cross-entropy."""
        loss = super().compute_loss(logits, labels)
        if self.options.kd_weight == 0:
            return loss
        assert self.features is not None
        encoded = self.features.classes
        held = encoded if self.options.kd_scope == "seen" else self.task_classes
        text = self.features.text[[encoded.index(c) for c in held]]
        anchors = self.model.zero_shot_text_features[held]
        return loss + self.options.kd_weight * cosine_distance(text, anchors)
