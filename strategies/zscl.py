"""ZSCL: fine-tuning held at zero-shot CLIP on reference images and texts; averaged weights."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cl_clipfit import (
    CLIPStrategy,
    Count,
    Names,
    NotNegative,
    Positive,
    ScopeOptions,
    Share,
    Workload,
    encode_images,
    label_index,
    load_scenario,
    selection,
)
from cl_clipfit.merging import interpolate
from cl_clipfit.training.losses import distillation

NAME = "zscl"
GROUP = "regularisation"
PAPER = "Zheng et al. 2023, arXiv 2303.06628 (ICCV)"
NEEDS = "reference images and texts; the mean of the task's weights so far"
RECIPE = {"lr": 3e-5}
RECIPES = {
    "split-digits": {"reference": "split-shapes100"},
    "split-shapes100": {"reference": "split-digits"},
}
PUBLISHED = {  # class-incremental; without its warm-up of 30 steps. Name the reference yourself
    "optimizer": "adamw", "lr": 7e-6, "epochs": 1, "batch_size": 128, "schedule": "cosine",
    "ce_scope": "task", "smoothing": 0.2, "distil": 5.0, "temperature": 2.0, "every": 10,
}  # fmt: skip

_DRAW_SEED = 3_000_047  # makes the drawn references independent of the order of the data


class ZSCLOptions(ScopeOptions):
    """Settings of ZSCL."""

    ce_scope: Literal["task", "seen"] = Field("seen", description="classes the cross-entropy ranks")
    reference: str = Field(
        "task", description="reference images: a scenario, a folder of classes, or the task's own"
    )
    per_class: Count = Field(10, description="images per class of the reference, at most")
    texts: Names = Field(
        (), description="reference texts besides its classes: a list, a file of lines, or imagenet"
    )
    distil: NotNegative = Field(1.0, description="weight of the distillation, in both directions")
    temperature: Positive = Field(2.0, description="of the distilled distributions")
    smoothing: Share = Field(0.0, description="of the labels of the cross-entropy")
    every: Count = Field(10, description="steps between weights that enter the average")


@dataclass
class _Reference:
    """Images (N, 3, H, W), their zero-shot features (N, d), and those of texts (M, d).

    Without images, those of each step serve. It is read again where a run is resumed.
    """

    images: Any
    features: Tensor | None
    text: Tensor


class ZSCL(CLIPStrategy):
    """Cross-entropy + distil * T^2 (KL of images over texts + KL of texts over images).

    Both divergences are of softmax(scale * cos / T) now from that of zero-shot CLIP, for a batch of
    reference images drawn in each step and all reference texts. As in the released code, text is
    zero-shot on both sides (github.com/Thunderbeee/ZSCL, issue 1): what holds the text tower is the
    average alone. It starts at the weights before the task, takes in the current ones every few
    steps, all with equal weight, and a task ends with it. The code also takes in those after the
    first step, and for MTIL adds a squared distance to the weights before the task.

    The paper's references are ImageNet and Conceptual Captions. reference=task needs no data, but
    holds the model on what it is to learn. A scenario with the stream's own images would show later
    tasks.
    """

    options_class = ZSCLOptions
    options: ZSCLOptions

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reference_draws = torch.Generator()
        self.reference_draws.manual_seed((self.seeds.data + _DRAW_SEED) % 2**63)
        self.reference: _Reference | None = None
        self.average: dict[str, Tensor] = {}  # of the task's weights; empty between tasks
        self.averaged = 0  # weights in it besides those before the task
        self._shown: tuple[Tensor, Tensor] | None = None  # images of a step, zero-shot features

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return all parameters except the logit scale and bias."""
        return selection.select_all_but_scale(self.model.clip)

    def before_task(self) -> None:
        """Read the reference, if need be again for the task; start the average."""
        super().before_task()
        if self.reference is None or self.options.reference == "task":
            self.reference = self._read()
        self.average, self.averaged = self.current_values(), 0

    @torch.no_grad()
    def _read(self) -> _Reference:
        """Read reference images and texts, and encode them by zero-shot CLIP."""
        model, options, images, features = self.model, self.options, None, None
        if options.reference == "task":
            text = model.zero_shot_text_features[label_index(self.seen_classes, self.device)]
        else:
            folder = Path(options.reference)
            name, where = ("folder", folder) if folder.is_dir() else (options.reference, None)
            stream = load_scenario(
                name, data_dir=where, preprocess=model.preprocess, limit=options.per_class
            )
            images = stream.train.images
            with model.pretrained_weights():
                features = encode_images(self, images)
            text = model.zero_shot_names(stream.class_names, stream.templates)
        if options.texts:
            text = torch.cat([text, model.zero_shot_names(options.texts, self.templates)])
        return _Reference(images, features, text)

    @contextlib.contextmanager
    def step_weights(self) -> Iterator[None]:
        """Choose the reference images of a step before its passes run."""
        assert self.reference is not None
        images, known = self.reference.images, self.reference.features
        if known is None:
            with torch.no_grad(), self.model.pretrained_weights():
                self._shown = self.mb_x, self.model.image_features(self.mb_x)
        else:
            size, draws = (len(self.mb_x),), self.reference_draws
            chosen = torch.randint(len(known), size, generator=draws)
            self._shown = images[chosen].to(self.device), known[chosen].to(self.device)
        try:
            with super().step_weights():
                yield
        finally:
            self._shown = None

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the smoothed cross-entropy; in a step, plus the distillation."""
        options = self.options
        ranked = label_index(self.label_space(), logits.device)
        even = -logits.index_select(1, ranked).log_softmax(1).mean()
        smoothed = torch.lerp(super().compute_loss(logits, labels), even, options.smoothing)
        loss = self.term("cross-entropy", smoothed)
        if self._shown is None:
            return loss
        assert self.features is not None and self.reference is not None
        images, before = self._shown
        own = images is self.mb_x
        now = self.features.image if own else self.model.image_features(images)
        now, before = (self.model.logits(f, self.reference.text) for f in (now, before))
        kept = distillation(now, before, options.temperature)
        kept = kept + distillation(now.T, before.T, options.temperature)
        return loss + self.term("references", options.distil * options.temperature**2 * kept)

    def after_step(self) -> None:
        """Take the weights into the average."""
        super().after_step()
        if self.average and self.task_steps % self.options.every == 0:
            self.averaged += 1
            share = 1 / (1 + self.averaged)
            self.average = interpolate(self.average, self.current_values(), share)

    def after_task(self) -> None:
        """Load the average, unless the task had too few steps for one."""
        super().after_task()
        if self.averaged:
            self.model.load_values(self.average)
        self.average = {}

    def workload(self) -> Workload:
        """Add the passes of reference images; of a step's own, one without gradients."""
        work, own = super().workload(), self.options.reference == "task"
        return replace(work, passes=work.passes * (4 / 3 if own else 2))
