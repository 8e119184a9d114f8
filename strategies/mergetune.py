"""MERGETUNE: continue a tuned model so that it merges with zero-shot CLIP and earlier tasks."""

import contextlib
from collections.abc import Sequence
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
    Recipe,
    Share,
    Stage,
    Workload,
    diagonal_fisher,
    label_index,
)
from cl_clipfit.merging import (
    Pull,
    check_path_rule,
    coefficients,
    group_squares,
    interpolate,
    path_positions,
    proximal_step,
)
from cl_clipfit.training.losses import cosine_distance, l2_distance

NAME = "mergetune"
GROUP = "merging"
PAPER = "Wang et al. 2026, arXiv 2601.10497 (ICLR)"
NEEDS = "the previous task's merged weights"
PUBLISHED = {
    "host": "coop", "space": "text-features", "anchor": "zero-shot", "lambda_zero_shot": 8.0,
    "beta": 1.0, "alpha": "grid-5", "tau": 1.0, "keep_kd": False, "merge_epochs": 100,
    "merge_lr": 2e-3, "merge_batch_size": 128,
}  # fmt: skip

Values = dict[str, Tensor]
_DRAW_SEED = 2_000_003  # makes the draws of path points independent of data order and crops


class MergeTuneOptions(ContinuedOptions):
    """Settings of MERGETUNE; other settings of its label go to the host."""

    anchor: Literal["zero-shot", "previous", "both"] = Field(
        "both", description="solutions the weights are pulled to"
    )
    lambda_zero_shot: NotNegative = Field(
        0.1, description="pull to zero-shot: alone it leaves exp(-lambda) of the distance"
    )
    lambda_previous: NotNegative = Field(
        0.1, description="the same to the merged weights of the previous task"
    )
    metric: Literal["l2", "fisher", "cosine"] | None = Field(
        None,
        description="distance: of weights l2 (default), or fisher to the previous task; of text"
        " features cosine (default) or l2",
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
        if self.metric == "cosine" and self.space == "weights":
            raise ValueError("metric=cosine needs space=text-features")
        return self


class MergeTune(ContinuedStrategy):
    """Train a host on every task, then continue it with the same loss to the merged weights.

    Steps on `L_host(w) + beta mean_alpha L_host(w2 + alpha (w - w2))`, from `(1 - tau) s + tau w2`,
    alternate with proximal steps on `lambda_zero_shot d(w, w1) + lambda_previous d(w, p)`: the
    replay-free objective of Wang et al. 2026, with an additional anchor at the previous task, and
    distances that are relative within each group of tensors. What the host did not move in a task
    is pulled nowhere.
    """

    options_class = MergeTuneOptions

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path_draws = torch.Generator().manual_seed((self.seeds.data + _DRAW_SEED) % 2**63)
        self._fisher: Values | None = None
        self._pulls: list[Pull] = []  # between weights
        self._text_pulls: list[tuple[float, Tensor]] = []  # weight, and unit features (C, d)

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
        start = stage.previous if self.merge.start == "previous" else stage.zero_shot_where_moved
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

    def stage_recipe(self) -> Recipe:
        """Keep the host's weight decay if text features are pulled, as the released code does."""
        if self.merge.space == "weights":
            return super().stage_recipe()
        return super().stage_recipe().model_copy(update={"weight_decay": self.recipe.weight_decay})

    @torch.no_grad()
    def prepare_stage(self, stage: Stage) -> None:
        """Compute rates of the pulls, or encode the text once at the ends of the line."""
        if self.merge.space == "weights":
            self._pulls = self._weight_pulls(stage)
            return
        with self.model.weights(stage.previous):
            previous = self.model.text_features(self.seen_classes)
        with self.model.weights(stage.host):
            self._host_text = self.model.text_features(self.seen_classes, normalize=False)
        seen = label_index(self.seen_classes, previous.device)
        points = self.model.zero_shot_text_features.index_select(0, seen), previous
        weights = self._pull_weights(apart=self.tasks_seen > 1)
        self._text_pulls = list(zip(weights, points, strict=True))

    def _pull_weights(self, apart: bool) -> tuple[float, float]:
        """Return the weights of the pulls to zero-shot and previous; equal anchors count once."""
        options = self.merge
        only = options.anchor == "previous"
        previous = only or (options.anchor == "both" and apart)
        return options.lambda_zero_shot * (not only), options.lambda_previous * previous

    def _weight_pulls(self, stage: Stage) -> list[Pull]:
        """Return the pulls of a stage, in units of how far the host moved in the task."""
        zero_shot, previous = stage.zero_shot_where_moved, stage.previous
        apart = any(not torch.equal(value, previous[name]) for name, value in zero_shot.items())
        moved = group_squares(previous, stage.host, stage.groups)
        pulls = []
        for weight, point, fisher in zip(
            self._pull_weights(apart), (zero_shot, previous), (None, self._fisher), strict=True
        ):
            if weight > 0:
                scales = coefficients(point, stage.host, stage.groups, fisher)
                rates = {n: weight * moved[stage.groups[n]] * c for n, c in scales.items()}
                pulls.append(Pull(point, rates))
        return pulls

    def stage_done(self) -> None:
        """Add the Fisher of this task, estimated at the merged weights."""
        self._pulls = []
        if self.merge.metric != "fisher":
            return
        images, _ = self.task_sample(self.merge.fisher_samples)
        new = diagonal_fisher(self, images, self.path_draws)
        old = self._fisher or {}
        self._fisher = {name: value + old.get(name, 0) for name, value in new.items()}

    # ---- a step in weight space ------------------------------------------------------------------

    def add_gradients(self) -> None:
        """Add the gradients of the points on the line, one after the other."""
        super().add_gradients()
        stage, beta = self.second_stage, self.merge.beta
        if stage is None or self.merge.space != "weights" or beta == 0:
            return
        alphas = path_positions(self.merge.alpha, self.path_draws)
        weights = self.current_values()
        at_the_weights = dict(self.terms)
        with self._shared_images():
            line = [
                self._add_path_point(stage.host, weights, alpha, beta / len(alphas))
                for alpha in alphas
            ]
        self.terms = at_the_weights
        self.loss += self.term("line", torch.stack(line).sum())

    def after_step(self) -> None:
        """Take the proximal step on the pulls."""
        super().after_step()
        if self.second_stage is not None and self._pulls:
            size = self.step_share()
            self.model.load_values(proximal_step(self.selection, self._pulls, size))

    def _shared_images(self) -> contextlib.AbstractContextManager[None]:
        """Reuse what does not change along the line: the embedding, or all of a frozen tower."""
        if any(name.startswith("clip.visual.") for name in self.selection):
            return self.model.shared_embedding(self.mb_x)
        if self.features is None:
            return contextlib.nullcontext()
        return self.model.known_images(self.mb_x, self.features.image.detach())

    def _add_path_point(self, host: Values, weights: Values, alpha: float, share: float) -> Tensor:
        """Add share * alpha * (gradient of the host's loss at a point of the line).

        Returns:
            share * that loss.
        """
        parameters = list(self.selection.values())
        with self.model.weights(interpolate(host, weights, alpha)):
            loss = self.training_loss(self.mb_x, self.mb_y)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                continue
            scaled = share * alpha * gradient
            parameter.grad = scaled if parameter.grad is None else parameter.grad + scaled
        return share * loss.detach()

    # ---- a step in text-feature space ------------------------------------------------------------

    def text_space(self) -> Sequence[int]:
        """Return the host's classes, or all classes seen if text features are pulled."""
        pulled = self.second_stage is not None and self.merge.space == "text-features"
        return self.seen_classes if pulled else super().text_space()

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Add the pulls and the line if they are between text features."""
        loss = super().compute_loss(logits, labels)
        if self.second_stage is None or self.merge.space != "text-features":
            return loss
        return loss + self._text_terms(labels)

    def _text_terms(self, labels: Tensor) -> Tensor:
        """Return the terms of the released code for prompts (CoOp, KgCoOp).

        W (1 - mean cos(f, f of zero-shot)) + W_LMC mean_alpha CE(image . n(f2 + alpha (f - f2))),
        f and f2 not normalised; with metric=l2, W mean ||n(f) - f of zero-shot||.
        """
        features, options = self.features, self.merge
        assert features is not None and features.raw_text is not None
        device = labels.device
        distance = l2_distance if options.metric == "l2" else cosine_distance
        pulls = line = features.image.new_zeros(())
        for weight, anchor in self._text_pulls:
            if weight > 0:
                pulls = pulls + weight * distance(features.text, anchor)
        classes = self.label_space()
        targets = (labels[:, None] == label_index(classes, device)).int().argmax(1)
        ranked = label_index([features.classes.index(c) for c in classes], device)
        end, start = (f.index_select(0, ranked) for f in (features.raw_text, self._host_text))
        alphas = path_positions(options.alpha, self.path_draws) if options.beta > 0 else []
        for alpha in alphas:
            text = F.normalize(start + alpha * (end - start), dim=-1)
            loss = F.cross_entropy(self.model.logits(features.image, text), targets)
            line = line + options.beta / len(alphas) * loss
        return self.term("pulls", pulls) + self.term("line", line)
