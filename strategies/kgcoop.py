"""KgCoOp: learned first words of the prompt, with the text features held to zero-shot."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from cl_clipfit.config.options import Count, NotNegative
from cl_clipfit.methods.prompt import PromptOptions, PromptStrategy
from cl_clipfit.training.features import label_index
from cl_clipfit.training.prompt_sampling import PromptDraws, PromptSample

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
    kd_prompts: Count | None = Field(
        None, description="prompts held besides the ranked ones, drawn each step; default all"
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """Refuse what would have no effect."""
        drawn = self.kd_weight > 0 and self.kd_scope == "seen" and self.ce_scope == "task"
        if self.kd_prompts and not drawn:
            raise ValueError(
                "kd_prompts needs a kd_weight above 0, kd_scope=seen and ce_scope=task: else there"
                " is nothing to draw"
            )
        return self


class KgCoOp(PromptStrategy):
    """Cross-entropy + kd_weight * (1 - mean cos) of the class prompts to those of zero-shot."""

    options_class = KgCoOpOptions
    options: KgCoOpOptions

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kd_draws = PromptDraws(self.seeds.data)
        self._held: PromptSample | None = None  # in the pass under way

    def before_task(self) -> None:
        """Begin the draws of the task."""
        super().before_task()
        self.kd_draws.start_task(self.tasks_seen)

    def text_space(self) -> Sequence[int]:
        """Return the classes that are ranked or held; drawn ones as in the latest pass."""
        if self._held and self.options.kd_scope == "seen":
            return self._held.classes
        return self.label_space()

    def training_logits(self, images: Tensor) -> Tensor:
        """Choose the prompts to hold."""
        own, self._held = self.options, None
        if own.kd_weight > 0 and own.kd_scope == "seen":
            ranked = self.label_space()
            self._held = self.kd_draws.sample(ranked, self.seen_classes, limit=own.kd_prompts)
        elif own.kd_weight > 0:
            self._held = PromptSample(self.task_classes, [])
        return super().training_logits(images)

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Add the distance to the cross-entropy."""
        loss = super().compute_loss(logits, labels)
        if self._held is None:
            return loss
        assert self.features is not None
        text, encoded, classes = self.features.text, self.features.classes, self._held.classes
        if encoded != classes:  # more were encoded: to be ranked, or for a second stage
            text = text[label_index([encoded.index(c) for c in classes], text.device)]
        anchors = self.model.zero_shot_text_features[label_index(classes, text.device)]
        return loss + self.options.kd_weight * self._held.distance(text, anchors)
