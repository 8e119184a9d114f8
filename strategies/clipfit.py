"""CLIPFit: text feed-forward biases and image LayerNorms; text features stay near zero-shot."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor, nn

from cl_clipfit import (
    CLIPStrategy,
    Count,
    Names,
    NotNegative,
    Positive,
    ScopeOptions,
    TextDistillation,
    selection,
)
from cl_clipfit.merging.layers import squared_change_by_layer
from cl_clipfit.training.losses import cosine_distance

NAME = "clipfit"
GROUP = "selective fine-tuning"
PAPER = "Li et al. 2024, arXiv 2409.16718 (EMNLP)"
NEEDS = "nothing of earlier tasks"
RECIPE = {"text_lr_scale": 30}  # how it was chosen: docs/clipfit.md
RECIPES = {
    # Two classes per task: zero-shot can already tell just these two apart.
    "split-digits": {"lr": 5e-4, "ce_scope": "seen"},
    "split-shapes100": {"lr": 1e-3},
}
PUBLISHED = {
    "optimizer": "sgd", "lr": 2e-3, "text_lr_scale": 1.0, "momentum": 0.9, "weight_decay": 5e-4,
    "batch_size": 32, "drop_last": True, "epochs": 100,
    "schedule": "epoch-cosine", "warmup_epochs": 1, "warmup_lr": 1e-5,
    "augmentation": "crop-flip", "crop_scale": 0.08,
    "text_biases": "second-ffn", "layer_norms": "all", "image_anchor": 0.0,
    "ce_scope": "task", "kd": "cosine", "kd_weight": 8.0, "kd_scope": "seen", "kd_prompts": None,
}  # fmt: skip

LayerRange = Annotated[str, AfterValidator(selection.check_layers)]


class ClipFitOptions(ScopeOptions):
    """Settings of CLIPFit; the defaults are the published method over tasks."""

    text_biases: Literal["second-ffn", "all", "none"] = Field(
        "second-ffn", description="biases of the text tower that train"
    )
    layer_norms: Literal["all", "pre", "none"] = Field(
        "all", description="LayerNorms of the image tower that train"
    )
    text_layers: LayerRange | None = Field(None, description="text blocks, as 0-5; default all")
    image_layers: LayerRange | None = Field(None, description="image blocks, as 0-5; default all")
    kd: Literal["cosine", "mse", "none"] = Field(
        "cosine", description="distillation: of text features, or squared change of text biases"
    )
    kd_weight: NotNegative = Field(8.0, description="weight of the distillation")
    kd_scope: Literal["task", "seen", "seen+vocabulary"] = Field(
        "seen", description="class prompts that are distilled"
    )
    vocabulary: Names = Field(
        (), description="further names to distil: a list, a file of lines, or imagenet"
    )
    kd_prompts: Count | None = Field(
        None,
        description="prompts distilled in addition to the ranked ones, drawn per step; default all",
    )
    image_anchor: NotNegative = Field(
        0.0, description="weight of 1 - cos of image features to their zero-shot ones"
    )
    text_lr_scale: Positive = Field(
        1.0, description="learning rate of the text biases, as a multiple of lr"
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """Refuse what would have no effect."""
        if (self.kd_scope == "seen+vocabulary") != bool(self.vocabulary):
            raise ValueError("vocabulary and kd_scope=seen+vocabulary need each other")
        if self.vocabulary and (self.kd != "cosine" or self.kd_weight == 0):
            raise ValueError("a vocabulary needs kd=cosine and a kd_weight above 0")
        if self.kd_prompts:
            self._check_draws()
        if self.kd == "mse" and self.text_biases == "none":
            raise ValueError("kd=mse holds text biases, and text_biases=none trains none")
        if self.text_biases == "none" and self.layer_norms == "none":
            raise ValueError("nothing would train with text_biases=none and layer_norms=none")
        if self.text_layers and self.text_biases == "none":
            raise ValueError("text_layers has no effect with text_biases=none")
        if self.image_layers and self.layer_norms != "all":
            raise ValueError("image_layers needs layer_norms=all")
        return self

    def _check_draws(self) -> None:
        if self.kd != "cosine" or self.kd_weight == 0:
            raise ValueError("kd_prompts needs kd=cosine and a kd_weight above 0")
        if self.text_biases == "none":
            raise ValueError("kd_prompts has no effect with text_biases=none: no text moves")
        if self.kd_scope == "task":
            raise ValueError("kd_prompts has no effect with kd_scope=task, which draws nothing")
        if self.ce_scope == "seen" and not self.vocabulary:
            raise ValueError(
                "kd_prompts has no effect with ce_scope=seen, which ranks every class seen: set"
                " ce_scope=task, or kd_scope=seen+vocabulary and a vocabulary"
            )


class ClipFit(CLIPStrategy):
    """Cross-entropy + kd_weight * (1 - mean cos): Li et al. 2024, on a stream.

    The mean is over the prompts in `kd_scope`, or is estimated from `kd_prompts` of them; their
    anchors are the text features of the pretrained model.
    """

    options_class = ClipFitOptions
    extends = True
    options: ClipFitOptions

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        options = self.options
        self.distillation = TextDistillation(
            self, seed=self.seeds.data, scope=options.kd_scope, limit=options.kd_prompts,
            vocabulary=options.vocabulary,
        )  # fmt: skip

    def before_task(self) -> None:
        """Seed the draws of prompts for the task."""
        super().before_task()
        self.distillation.start_task(self.tasks_seen)

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return the published selection, or the ablation that the options select."""
        options = self.options
        layers = (options.text_layers, options.image_layers)
        ranges = [selection.parse_layers(text) if text else None for text in layers]
        chosen = selection.select_clipfit(
            self.model.clip, options.text_biases, options.layer_norms, *ranges
        )
        if not chosen.image and options.layer_norms != "none":
            self.warn("clipfit: this image tower has no such LayerNorm; only text biases train")
        text = {id(p) for p in chosen.text}
        self._text = {n: p for n, p in self.model.named_parameters() if id(p) in text}
        return [*chosen.text, *chosen.image]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Give each tower its learning rate."""
        image = [p for name, p in self.selection.items() if name not in self._text]
        groups: list[dict[str, Any]] = [
            {
                "params": list(self._text.values()),
                "lr": self.recipe.lr * self.options.text_lr_scale,
            },
            {"params": image},
        ]
        return [group for group in groups if group["params"]]

    def text_space(self) -> Sequence[int]:
        """Return the classes that are ranked or distilled."""
        return self.distillation.text_space()

    def training_logits(self, images: Tensor) -> Tensor:
        """Encode the prompts that are distilled together with those that are ranked."""
        # First the anchors of the images: restoring weights later would invalidate the graph.
        if self.options.image_anchor:
            with torch.no_grad(), self.model.pretrained_weights():
                self._image_anchors = self.model.image_features(images)
        distils = self.options.kd == "cosine" and self.options.kd_weight > 0
        with self.distillation.encoding(distils):
            return super().training_logits(images)

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return cross-entropy + kd_weight * (1 - mean cos), plus the image anchor if enabled."""
        options, loss = self.options, super().compute_loss(logits, labels)
        if options.kd_weight > 0 and options.kd == "cosine":
            distance = self.distillation.distance()
            loss = loss + self.term("distillation", options.kd_weight * distance)
        elif options.kd_weight > 0 and options.kd == "mse":
            loss = loss + self.term("distillation", options.kd_weight * self._bias_change())
        if options.image_anchor:
            assert self.features is not None
            distance = cosine_distance(self.features.image, self._image_anchors)
            loss = loss + self.term("image anchor", options.image_anchor * distance)
        return loss

    def _bias_change(self) -> Tensor:
        """Return the mean over layers of the squared change of the text biases."""
        layers = squared_change_by_layer(self._text, self.model.pretrained_values)
        return torch.stack(list(layers.values())).mean()
