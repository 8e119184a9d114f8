"""Full fine-tuning: all weights but the logit scale, cross-entropy over the classes seen."""

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field
from torch import nn

from cl_clipfit import CLIPStrategy, Options
from cl_clipfit.training.selection import select_all_but_scale

NAME = "full"
PAPER = "the naive baseline of the field"
NEEDS = "nothing of earlier tasks"
RECIPE = {"lr": 1e-5}
RECIPES = {"split-digits": {"lr": 1e-4}, "split-shapes100": {"lr": 1e-4}}


class FullOptions(Options):
    """Settings of full fine-tuning."""

    ce_scope: Literal["task", "seen"] = Field("seen", description="classes the cross-entropy ranks")


class Full(CLIPStrategy):
    """Train both towers on each task as it comes, with nothing against forgetting."""

    options_class = FullOptions
    options: FullOptions

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return all parameters but the logit scale."""
        return select_all_but_scale(self.model.clip)

    def label_space(self) -> Sequence[int]:
        """Return the classes seen, or those of the task."""
        return self.seen_classes if self.options.ce_scope == "seen" else self.task_classes
