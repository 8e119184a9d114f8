"""EWC: any method, with the weights that matter for earlier tasks held where these left them."""

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from cl_clipfit import (
    Count,
    HostedStrategy,
    HostOptions,
    NotNegative,
    Share,
    Workload,
    diagonal_fisher,
)
from cl_clipfit.training.losses import squared_change

NAME = "ewc"
GROUP = "regularisation"
PAPER = "Kirkpatrick et al. 2017, arXiv 1612.00796 (PNAS), eq. 3; online: arXiv 1805.06370 (ICML)"
NEEDS = "the weights before the task, the sum of the Fisher information, and what its host keeps"

_DRAW_SEED = 3_000_029  # makes the drawn labels independent of the order of the data


class EWCOptions(HostOptions):
    """Settings of EWC; other settings of its label go to the host."""

    hold: NotNegative = Field(30_000.0, description="lambda")
    decay: Share = Field(1.0, description="factor on the Fisher of earlier tasks after each task")
    labels: Literal["drawn", "given"] = Field(
        "drawn", description="of the Fisher: the model's own draws, or those of the images"
    )
    samples: Count = Field(256, description="images of a task that its Fisher is estimated from")


class EWC(HostedStrategy):
    """L_host + lambda / 2 sum F (w - w')^2; w' are the weights before the task.

    The online form (Schwarz et al. 2018, after Huszar's note on the first one, arXiv 1712.03847):
    after a task F becomes decay * F + that task's Fisher, its diagonal at the weights just learned,
    and one point w' stands for all tasks. The form of 2017 has a point and a Fisher for each.

    The Fisher is the mean over images of squared gradients, with labels that the model draws among
    the classes it ranks. Implementations differ here (van de Ven 2025, arXiv 2502.11756).
    Avalanche's plug-in has the empirical Fisher and no 1/2, and equals labels=given if its batches
    hold one image; of larger batches it squares the mean gradient. Mammoth's code weights images by
    the probability of their label.
    """

    options_class = EWCOptions
    repeats_images = True
    host_is = "consolidated"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.label_draws = torch.Generator().manual_seed((self.seeds.data + _DRAW_SEED) % 2**63)
        self.consolidated: dict[str, Tensor] = {}  # w'
        self.importance: dict[str, Tensor] = {}  # F

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Add the weighted squared change since the last task."""
        loss = super().compute_loss(logits, labels)
        if not self.importance:  # in the first task
            return loss
        moved = squared_change(self.selection, self.consolidated, self.importance)
        return loss + self.term("hold", self.merge.hold / 2 * moved)

    def after_task(self) -> None:
        """Estimate the Fisher of the task, add it to the sum, and keep the weights."""
        super().after_task()
        images, labels = self.task_sample(self.merge.samples)
        given = labels if self.merge.labels == "given" else None
        new = diagonal_fisher(self, images, self.label_draws, given)
        for name, old in self.importance.items():
            new[name] += self.merge.decay * old
        self.importance, self.consolidated = new, self.current_values()

    def workload(self) -> Workload:
        """Add the images that the Fisher is estimated from."""
        work = super().workload()
        return replace(work, sampled=(*work.sampled, (1, self.merge.samples)))
