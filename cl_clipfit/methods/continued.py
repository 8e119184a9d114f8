"""Methods that continue another method: a second stage after every task, on the same images."""

import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from cl_clipfit.config.options import Count, Number, Options, Positive, Recipe, Share
from cl_clipfit.evaluation.feature_reuse import leaves_images
from cl_clipfit.evaluation.landscape import LINES, Sample, profiles
from cl_clipfit.merging import direction_cosine, interpolate, length_ratio
from cl_clipfit.merging.combine import aligned
from cl_clipfit.merging.layers import tensor_groups
from cl_clipfit.methods.hosted import HostedStrategy
from cl_clipfit.training.features import Workload
from cl_clipfit.training.optimization import lr_share

LINE_POINTS = 6  # at which barriers are measured after a task, with both ends
LANDSCAPE_IMAGES = 512
FAR = 3.0  # times the host's distance from zero-shot: a second stage beyond it has diverged
Values = dict[str, Tensor]


class ContinuedOptions(Options):
    """Settings of methods that continue another; other settings of their label go to the host."""

    host: str = Field("clipfit", description="the method that is continued")
    trajectory: Literal["chained", "read-out"] = Field(
        "chained", description="the next task starts from the merged weights, or from the host's"
    )
    keep_kd: bool = Field(True, description="keep the host's distillation in the second stage")
    merge_epochs: Annotated[int, Number, Field(ge=0)] | None = Field(
        None, description="epochs of the second stage; default half of the host's, rounded up"
    )
    merge_lr: Positive | None = Field(None, description="its learning rate; default the host's")
    merge_batch_size: Count | None = Field(
        None, description="images per step of the second stage; default the host's"
    )
    ensemble: Share | None = Field(
        None, description="score the merged weights at this share, with zero-shot for the rest"
    )
    landscape: Literal["sample", "off"] = Field(
        "sample", description="measure the barriers of each task on a sample of its images"
    )


@dataclass
class Stage:
    """The solutions that a second stage lies between: values of the selection.

    Attributes:
        zero_shot: w1.
        previous: p, the merged weights of the previous task; w1 in task 1.
        host: w2.
        groups: the group of every tensor; distances are relative within a group.
    """

    zero_shot: Values
    previous: Values
    host: Values

    def __post_init__(self) -> None:
        self.groups = tensor_groups(self.host)

    @functools.cached_property
    def zero_shot_where_moved(self) -> Values:
        """Zero-shot where the host moved in the task, else the previous value.

        What a task gives no gradient, such as the rows of a head for other classes, is all that is
        left of earlier tasks there: a pull to zero-shot would erase it, and no loss would object.
        """
        host, previous, start = aligned(self.host, self.previous, self.zero_shot)
        return {n: torch.where(end == previous[n], end, start[n]) for n, end in host.items()}


class ContinuedStrategy(HostedStrategy):
    """Train a host on every task, then continue it in a second stage.

    A method overrides `start(stage)`, where the second stage starts, and adds its terms in
    `add_gradients` or `compute_loss` while `second_stage` is set. The host's loss is its
    `training_loss`; terms that a host adds in `add_gradients` are computed only at the current
    weights of a step.

    Args:
        **kwargs: as in `HostedStrategy`.
    """

    repeats_images = True
    options_class: ClassVar[type[Options]] = ContinuedOptions

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.second_stage: Stage | None = None
        self._solution: Callable[[int], Values] | None = None
        self._previous: Values | None = None  # merged weights of the previous task
        self._trajectory: Values | None = None  # where the host continues in a read-out
        self.last_stage: Stage | None = None
        self._ratio = 1.0  # distance of its merged weights from zero-shot, relative to the host's
        self._task_started = 0.0

    def continue_solutions(self, solution: Callable[[int], Values]) -> None:
        """Continue the solutions of a finished host instead of training one.

        Args:
            solution: loads the host's weights after a task, counted from 1. They are not part of
                this method's state: a resumed run loads them again.
        """
        self._solution = solution
        self.train_epochs = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state without times of this process, and without the host's solutions."""
        excluded = ("_task_started", "_solution")
        return {n: v for n, v in super().state_dict().items() if n not in excluded}

    def start(self, stage: Stage) -> Values:
        """Return the weights that the second stage starts from; default: the host's."""
        return stage.host

    def prepare_stage(self, stage: Stage) -> None:
        """Compute what the terms of a stage need; default: nothing."""

    def stage_done(self) -> None:
        """Do something at the merged weights of a task; default: nothing."""

    def before_task(self) -> None:
        """Reset the host of a read-out to the end of its previous task."""
        if self._trajectory is not None:
            self.model.load_values(self._trajectory)
        super().before_task()
        self._previous = self._previous or self.zero_shot_point()
        self._task_started = self._now()

    def after_task(self) -> None:
        """Run the second stage on the same images."""
        super().after_task()  # the host's
        started = self._now()
        host = self._solution(self.tasks_seen) if self._solution else self.current_values()
        assert self._previous is not None
        stage = Stage(self.zero_shot_point(), self._previous, host)
        self.prepare_stage(stage)
        self.model.load_values(self.start(stage))
        self._train(stage)
        self._previous, self.last_stage = self.current_values(), stage
        if self.merge.trajectory == "read-out":
            self._trajectory = host
        self.stage_done()
        ended = self._now()
        host_seconds = None if self._solution else started - self._task_started
        self.records.append(
            {
                **self._measure(stage, self._previous),
                "host_seconds": host_seconds,
                "merge_seconds": ended - started,
                "landscape_seconds": self._now() - ended,
            }
        )
        self.measured_seconds += self._now() - ended

    def _now(self) -> float:
        """Return the time in seconds, once the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def stage_recipe(self) -> Recipe:
        """Return how the second stage trains; without weight decay, a pull of its own to 0."""
        options, recipe, epochs = self.merge, self.recipe, self._epochs()
        return recipe.model_copy(
            update={
                "epochs": epochs, "lr": options.merge_lr or recipe.lr, "weight_decay": 0.0,
                "batch_size": options.merge_batch_size or recipe.batch_size,
                # A stage of one epoch must not consist only of warm-up.
                "warmup_epochs": min(recipe.warmup_epochs, epochs - 1),
            }
        )  # fmt: skip

    def step_share(self) -> float:
        """Return the last step's share of the learning rates of the second stage, summed."""
        assert self.scheduler is not None
        return lr_share(self.recipe, self.scheduler.last_epoch - 1, len(self.dataloader))

    def _train(self, stage: Stage) -> None:
        options = self.merge
        if self._epochs() == 0:
            return
        host_options = self.options
        if not options.keep_kd and hasattr(host_options, "kd_weight"):
            self.options = host_options.model_copy(update={"kd_weight": 0.0})
        self.second_stage = stage
        crops = self.augmentation_draws.get_state()
        # A read-out must not affect the host: its next task draws the same random numbers.
        read_out = options.trajectory == "read-out"
        try:
            with torch.random.fork_rng(enabled=read_out):
                self.train_stage(self.stage_recipe())
        finally:
            self.second_stage, self.options = None, host_options
            if read_out:
                self.augmentation_draws.set_state(crops)

    def _epochs(self) -> int:
        given = self.merge.merge_epochs
        return (self.recipe.epochs + 1) // 2 if given is None else given

    def workload(self) -> Workload:
        """Add the second stage and the measurements after it."""
        host, epochs, trained = super().workload(), self._epochs(), self._solution is None
        points = 0
        if self.merge.landscape != "off":
            # One point is enough if image features do not change; the lines share four end points.
            shared = self.selection and leaves_images(self, self.selection)
            points = 1 if shared else 4 + len(LINES) * (LINE_POINTS - 2)
        # scored: the merged weights, the host, WiSE-FT, and the ensemble if it is requested
        passes = 3 + (self.merge.ensemble is not None)
        return Workload(
            host.epochs * trained + epochs,
            host.passes * trained + epochs,
            passes,
            ((points, LANDSCAPE_IMAGES),),
        )

    def _measure(self, stage: Stage, merged: Values) -> dict[str, Any]:
        """Measure the position of the merged weights, and the barriers between the solutions."""
        record: dict[str, Any] = {}
        for name, point in (("zero_shot", stage.zero_shot), ("previous", stage.previous)):
            ratio = length_ratio(merged, point, stage.host)
            record[f"ratio_to_{name}"] = ratio if math.isfinite(ratio) else None
            record[f"cosine_to_{name}"] = direction_cosine(merged, point, stage.host)
            if point is stage.zero_shot:
                self._ratio = ratio
        ratio = self._ratio
        if not ratio <= FAR:  # too large, or NaN
            self.warn(
                f"task {self.tasks_seen}: the second stage diverged, {ratio:.3g} times as far from"
                " zero-shot as the host: lower merge_lr or the lambdas, or let the host move more"
            )
        if self.merge.landscape == "sample":
            images, labels = self.task_sample(LANDSCAPE_IMAGES)
            points: Mapping[str, Values] = {
                "zero-shot": stage.zero_shot, "previous": stage.previous,
                "host": stage.host, "merged": merged,
            }  # fmt: skip
            lines = profiles(self, points, Sample(images, labels, self.label_space()), LINE_POINTS)
            record["barriers"] = {name: line["barrier"] for name, line in lines.items()}
        return record

    def compared(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the host, and the interpolation at the same distance from zero-shot as merged."""
        stage, merged = self.last_stage, self._previous
        if stage is None or merged is None:
            return {}
        ratio = self._ratio if math.isfinite(self._ratio) else 1.0  # the host never left zero-shot
        values: dict[str, Mapping[str, Tensor]] = {
            "host": stage.host,
            "wise-ft at the same distance": interpolate(stage.zero_shot, stage.host, ratio),
        }
        if self.merge.ensemble is not None:
            mixed = interpolate(stage.zero_shot, merged, self.merge.ensemble)
            values["ensemble with zero-shot"] = mixed
        return values
