"""Routed: each image is classified with the weights of the task that it seems to belong to."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from cl_clipfit import (
    HostedStrategy,
    Options,
    PerTaskStrategy,
    Positive,
    TaskRouter,
    UserError,
    class_statistics,
)

NAME = "routed"
GROUP = "weights per task"
PAPER = "this project (docs/bank.md); the router: Lee et al. 2018, arXiv 1807.03888"
NEEDS = "the weights of all tasks, class means and a scatter matrix of each task (statistics)"


class RoutedOptions(Options):
    """Settings of routing; other settings of its label go to the host."""

    host: str = Field("clipfit", description="the method that tunes each task")
    start: Literal["tuned", "zero-shot"] = Field(
        "tuned", description="where each task starts: at the weights tuned last, or at zero-shot"
    )
    mix: Literal["hard", "soft"] = Field(
        "hard", description="the weights of one task, or of all, mixed by the router's posterior"
    )
    rule: Literal["gaussian", "nearest-mean"] = Field(
        "gaussian", description="of mix=hard: shared covariance, or nearest class mean"
    )
    shrinkage: Positive = Field(0.1, le=1, description="of the shared covariance")

    @model_validator(mode="after")
    def _check_together(self) -> "RoutedOptions":
        """Refuse a rule that has no posterior."""
        if self.mix == "soft" and self.rule != "gaussian":
            raise ValueError("mix=soft needs rule=gaussian, which has a posterior")
        return self


class Routed(HostedStrategy, PerTaskStrategy):
    """Tune a host on every task; the router of the bank chooses or mixes the weights of an image.

    It compares zero-shot features with the class means of all tasks. The weights of LayerNorms are
    mixed themselves; of what the text tower learned, the scores are, since prompts would have to be
    encoded anew for each image. mix=soft needs a host that tunes nothing else in the image tower.
    """

    options_class = RoutedOptions
    host_is = "routed"
    _made: tuple[Any, TaskRouter] | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.statistics: list[dict[str, Tensor]] = []

    def select(self) -> None:
        """Refuse a host whose weights cannot be mixed or reset as the options ask."""
        super().select()
        self.zero_shot_point()
        if self.merge.mix == "soft" and not self.mixes:
            raise UserError(
                "routed.mix=soft needs a host that tunes only LayerNorms of the image tower, as"
                " clipfit: choose one, or mix=hard"
            )

    def before_task(self) -> None:
        """Load zero-shot CLIP if the task starts there."""
        if self.merge.start == "zero-shot":
            pretrained = self.model.pretrained_values
            self.model.load_values({name: pretrained[name] for name in self.selection})
        super().before_task()

    def remember(self, features: Tensor, labels: Tensor) -> None:
        """Keep class means and the scatter about them."""
        self.statistics = [*self.statistics, class_statistics(features, labels)]

    def recall(self, statistics: Sequence[Mapping[str, Tensor]]) -> None:
        """Take the statistics of the bank, which are the same."""
        self.statistics = [dict(of_task) for of_task in statistics]

    def shares(self, features: Tensor) -> Tensor:
        """Return the posterior of the tasks, or 1 for the one chosen: (B, T)."""
        options, tasks = self.merge, len(self.statistics)
        if tasks == 1:
            return features.new_ones(len(features), 1)
        if options.mix == "soft":
            return self._router().posterior(features)
        chosen = self._router().route(features)
        return F.one_hot(chosen, tasks).to(torch.float32)

    def _router(self) -> TaskRouter:
        """Return the router of these statistics, which is made once and not with every batch."""
        if self._made is None or self._made[0] is not self.statistics:
            router = TaskRouter(self.statistics, self.merge.rule, self.merge.shrinkage)
            self._made = self.statistics, router
        return self._made[1]
