"""Full fine-tuning: all weights except the logit scale, cross-entropy over the classes seen."""

from collections.abc import Iterable
from typing import Literal

from pydantic import Field
from torch import nn

from cl_clipfit import CLIPStrategy, ScopeOptions, selection

NAME = "full"
GROUP = "reference points"
PAPER = "the naive baseline of the field"
NEEDS = "nothing of earlier tasks"
RECIPE = {"lr": 1e-4}  # the current task is learned best; how it was chosen: docs/clipfit.md


class FullOptions(ScopeOptions):
    """Settings of full fine-tuning."""

    ce_scope: Literal["task", "seen"] = Field("seen", description="classes the cross-entropy ranks")


class Full(CLIPStrategy):
    """Train both towers on each task in turn, without any measure against forgetting."""

    options_class = FullOptions
    options: FullOptions
    extends = True

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return all parameters except the logit scale and bias."""
        return selection.select_all_but_scale(self.model.clip)
