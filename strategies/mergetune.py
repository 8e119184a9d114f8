"""MERGETUNE: continue a tuned model so that it merges with zero-shot CLIP and earlier tasks."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from cl_clipfit import (
    ContinuedOptions,
    ContinuedStrategy,
    NotNegative,
    Number,
    Share,
    Stage,
    Workload,
    diagonal_fisher,
    label_index,
)
from cl_clipfit.merging import (
    check_path_rule,
    interpolate,
    path_positions,
    relative_distance,
)
from cl_clipfit.training.losses import cosine_distance

NAME = "mergetune"
PAPER = "Wang et al. 2026, arXiv 2601.10497 (ICLR)"
NEEDS = "the previous task's merged weights"
PUBLISHED = {
    "host": "coop", "space": "text-features", "anchor": "zero-shot", "lambda_zero_shot": 8.0,
    "beta": 1.0, "alpha": "grid-5", "tau": 1.0, "keep_kd": False, "merge_epochs": 100,
    "merge_lr": 2e-3,
}  # fmt: skip

Values = dict[str, Tensor]
Pull = Callable[[Mapping[str, Tensor]], Tensor]  # the distance of values from an anchor
_DRAW_SEED = 2_000_003  # makes the draws of path points independent of data order and crops


class MergeTuneOptions(ContinuedOptions):
    """Settings of MERGETUNE; other settings of its label go to the host."""

    anchor: Literal["zero-shot", "previous", "both"] = Field(
        "both", description="solutions the weights are pulled to"
    )
    lambda_zero_shot: NotNegative = Field(0.003, description="weight of the pull to zero-shot")
    lambda_previous: NotNegative = Field(
        0.003, description="weight of the pull to the merged weights of the previous task"
    )
    metric: Literal["l2", "fisher"] = Field(
        "l2", description="distance to the previous task: plain, or weighted by its Fisher"
    )
    fisher_samples: Annotated[int, Number, Field(ge=1)] = Field(
        256, description="images of a task that its Fisher is estimated from"
    )
    beta: NotNegative = Field(0.5, description="weight of the loss on the line to the host")
    alpha: Annotated[str, AfterValidator(check_path_rule)] = Field(
        "uniform", description="points on the line: uniform (one draw), midpoints-N or grid-N"
    )
    start: Literal["previous", "zero-shot"] = Field(
        "previous", description="where the second stage starts from, at tau=0"
    )
    tau: Share = Field(0.5, description="share of the host in the start of the second stage")
    space: Literal["weights", "text-features"] = Field(
        "weights", description="where distance and line are; text-features is the released code"
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        """Refuse what would have no effect."""
        if self.metric == "fisher" and (self.space != "weights" or self.anchor == "zero-shot"):
            raise ValueError("metric=fisher needs space=weights and an anchor at the previous task")
        return self


class MergeTune(ContinuedStrategy):
    """Train a host on every task, then continue it with the same loss to the merged weights.

    The objective is `L(w) = L_host(w) + lambda_zero_shot d(w, w1) + lambda_previous d(w, p)
    + beta mean_alpha L_host(w2 + alpha (w - w2))`, starting at `(1 - tau) s + tau w2`: the
    replay-free objective of Wang et al. 2026, with an additional anchor at the previous task, and
    distances that are relative within each group of tensors.
    """

    options_class = MergeTuneOptions

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path_draws = torch.Generator().manual_seed((self.seeds.data + _DRAW_SEED) % 2**63)
        self._fisher: Values | None = None
        self._stage_pulls: tuple[Stage, list[tuple[float, Pull]]] | None = None

    def select(self) -> None:
        """Refuse a host without the text features, or a first task without the Fisher, it needs."""
        super().select()
        if self.merge.space == "text-features" and not self.compares_text:
            raise ValueError("space=text-features needs a host that compares images with text")
        if self.merge.metric == "fisher" and self.tasks_seen == 0 and len(self.label_space()) == 1:
            raise ValueError(
                "metric=fisher: the first task ranks one class, so that its Fisher is 0: give it"
                " more classes, or use metric=l2"
            )

    def start(self, stage: Stage) -> Values:
        """Return (1 - tau) s + tau w2."""
        start = stage.previous if self.merge.start == "previous" else stage.zero_shot
        return interpolate(start, stage.host, self.merge.tau)

    def workload(self) -> Workload:
        """Add the points on the line and the images of the Fisher."""
        options, work = self.merge, super().workload()
        points = 0
        if options.space == "weights" and options.beta > 0:
            points = len(path_positions(options.alpha, torch.Generator()))
        fisher = ((3, options.fisher_samples),) if options.metric == "fisher" else ()
        return replace(
            work, passes=work.passes + points * self._epochs(),
            sampled=(*work.sampled, *fisher),
        )  # fmt: skip

    def _anchors(self, stage: Stage) -> list[tuple[float, Values, Values | None]]:
        """Return weight, point and Fisher of every pull; in task 1 both anchors coincide."""
        options, first = self.merge, self.tasks_seen == 1
        anchors: list[tuple[float, Values, Values | None]] = []
        if options.anchor != "previous":
            anchors.append((options.lambda_zero_shot, stage.zero_shot, None))
        if options.anchor == "previous" or (options.anchor == "both" and not first):
            anchors.append((options.lambda_previous, stage.previous, self._fisher))
        return [anchor for anchor in anchors if anchor[0] > 0]

    def _pulls(self, stage: Stage) -> list[tuple[float, Pull]]:
        """Return weight and distance of every pull; units are computed once per stage."""
        if self._stage_pulls is None or self._stage_pulls[0] is not stage:
            pulls = [
                (weight, relative_distance(point, stage.host, stage.groups, fisher))
                for weight, point, fisher in self._anchors(stage)
            ]
            self._stage_pulls = stage, pulls
        return self._stage_pulls[1]

    def stage_done(self) -> None:
        """Add the Fisher of this task, estimated at the merged weights."""
        self._stage_pulls = None
        if self.merge.metric != "fisher":
            return
        images, _ = self.task_sample(self.merge.fisher_samples)
        new = diagonal_fisher(self, images, self.path_draws)
        old = self._fisher or {}
        self._fisher = {name: value + old.get(name, 0) for name, value in new.items()}

    # ---- a step in weight space ------------------------------------------------------------------

    def add_gradients(self) -> None:
        """Add the gradients of the pulls and of the points on the line, one after the other."""
        super().add_gradients()
        stage = self.second_stage
        if stage is None or self.merge.space != "weights":
            return
        for weight, distance in self._pulls(stage):
            pull = distance(self.selection)
            (weight * pull).backward()
            self.loss += weight * pull.detach()
        if self.merge.beta > 0:
            alphas = path_positions(self.merge.alpha, self.path_draws)
            weights = self.current_values()
            with self._shared_images():
                for alpha in alphas:
                    self._add_path_point(stage.host, weights, alpha, self.merge.beta / len(alphas))

    def _shared_images(self) -> contextlib.AbstractContextManager[None]:
        """Reuse what does not change along the line: the embedding, or all of a frozen tower."""
        if any(name.startswith("clip.visual.") for name in self.selection):
            return self.model.shared_embedding(self.mb_x)
        if self.features is None:
            return contextlib.nullcontext()
        return self.model.known_images(self.mb_x, self.features.image.detach())

    def _add_path_point(self, host: Values, weights: Values, alpha: float, share: float) -> None:
        """Add share * alpha * (gradient of the host's loss at a point of the line)."""
        parameters = list(self.selection.values())
        with self.model.weights(interpolate(host, weights, alpha)):
            loss = self.training_loss(self.mb_x, self.mb_y)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                continue
            scaled = share * alpha * gradient
            parameter.grad = scaled if parameter.grad is None else parameter.grad + scaled
        self.loss += share * loss.detach()

    # ---- a step in text-feature space ------------------------------------------------------------

    @torch.no_grad()
    def prepare_stage(self, stage: Stage) -> None:
        """Encode the text once at the ends of the line."""
        if self.merge.space == "weights":
            return
        with self.model.weights(stage.previous):
            self._previous_text = self.model.text_features(self.seen_classes)
        with self.model.weights(stage.host):
            self._host_text = self.model.text_features(self.seen_classes, normalize=False)

    def text_space(self) -> Sequence[int]:
        """Return the host's classes, or all classes seen if text features are pulled."""
        pulled = self.second_stage is not None and self.merge.space == "text-features"
        return self.seen_classes if pulled else super().text_space()

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Add the pulls and the line if they are between text features."""
        loss = super().compute_loss(logits, labels)
        if self.second_stage is None or self.merge.space != "text-features":
            return loss
        return loss + self._text_terms(self.second_stage, labels)

    def _text_terms(self, stage: Stage, labels: Tensor) -> Tensor:
        """Return the terms of the released code for prompts (CoOp, KgCoOp).

        W (1 - mean cos(f, f of zero-shot)) + W_LMC mean_alpha CE(image . n(f2 + alpha (f - f2))),
        f and f2 not normalised.
        """
        features, options = self.features, self.merge
        assert features is not None and features.raw_text is not None
        device = labels.device
        encoded = label_index(features.classes, device)
        zero_shot = self.model.zero_shot_text_features.index_select(0, encoded)
        total = features.image.new_zeros(())
        for weight, point, _ in self._anchors(stage):
            anchor = self._previous_text if point is stage.previous else zero_shot
            total = total + weight * cosine_distance(features.text, anchor)
        classes = self.label_space()
        targets = (labels[:, None] == label_index(classes, device)).int().argmax(1)
        ranked = label_index([features.classes.index(c) for c in classes], device)
        end, start = (f.index_select(0, ranked) for f in (features.raw_text, self._host_text))
        alphas = path_positions(options.alpha, self.path_draws) if options.beta > 0 else []
        for alpha in alphas:
            text = F.normalize(start + alpha * (end - start), dim=-1)
            loss = F.cross_entropy(self.model.logits(features.image, text), targets)
            total = total + options.beta / len(alphas) * loss
        return total
