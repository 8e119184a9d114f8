"""LwF: any method, with its predictions on old classes held at those before the task."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from cl_clipfit import (
    HostedStrategy,
    HostOptions,
    NotNegative,
    Positive,
    Workload,
    keep_columns,
    label_index,
)
from cl_clipfit.training.losses import distillation

NAME = "lwf"
GROUP = "regularisation"
PAPER = "Li and Hoiem 2016, arXiv 1606.09282 (ECCV): learning without forgetting"
NEEDS = "the weights before the task, and what its host keeps"
PUBLISHED = {"host": "full", "distil": 1.0, "temperature": 2.0}


class LwFOptions(HostOptions):
    """Settings of LwF; other settings of its label go to the host."""

    distil: NotNegative = Field(30.0, description="its weight; published 1")
    temperature: Positive = Field(2.0, description="of the distilled distributions")


class LwF(HostedStrategy):
    """L_host + distil * KL(p' || p), of softmax(logits / T) over the classes of earlier tasks.

    p' is the prediction for a step's images at the weights before the task, which are kept for what
    the host trains. Gradients are those of the paper's cross-entropy with soft labels. The paper
    has a head for each task, and first trains the new one alone; here the prompts of all classes
    are the one head, as in Avalanche's plug-in, which this equals step by step. Cross-entropy is
    over the classes that the host ranks: of `full`, all classes seen; with ce_scope=task, those of
    the task, as in the paper.
    """

    options_class = LwFOptions
    host_is = "distilled"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.previous: dict[str, Tensor] = {}  # weights before the task
        self.old_classes: list[int] = []
        self._teacher: Tensor | None = None  # logits (B, old classes), while a step's passes run

    def label_space(self) -> Sequence[int]:
        """Return all classes seen once some are old, so that a step has logits for them."""
        return self.seen_classes if self.old_classes else super().label_space()

    def _old(self, logits: Tensor) -> Tensor:
        """Return the columns (B, C) of the old classes."""
        return logits.index_select(1, label_index(self.old_classes, logits.device))

    @contextlib.contextmanager
    def step_weights(self) -> Iterator[None]:
        """Predict the images of a step at the previous weights before its passes run."""
        if self.old_classes:
            with torch.no_grad(), self.model.weights(self.previous):
                self._teacher = self._old(self.training_logits(self.mb_x))
        try:
            with super().step_weights():
                yield
        finally:
            self._teacher = None

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Add the distillation to the host's loss over the classes that the host ranks."""
        loss = super().compute_loss(keep_columns(logits, super().label_space()), labels)
        if self._teacher is None:  # in the first task, or asked for outside of a step
            return loss
        kept = distillation(self._old(logits), self._teacher, self.merge.temperature)
        return loss + self.term("old classes", self.merge.distil * kept)

    def after_task(self) -> None:
        """Keep the weights and the classes."""
        super().after_task()
        self.previous, self.old_classes = self.current_values(), [*self.seen_classes]

    def workload(self) -> Workload:
        """Add a pass without gradients."""
        work = super().workload()
        return replace(work, passes=work.passes * 4 / 3)
