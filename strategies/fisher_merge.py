"""Fisher merging: the mean of all tasks' weights, weighted by the Fisher information of each."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from cl_clipfit import Count, MergingOptions, MergingStrategy, diagonal_fisher
from cl_clipfit.merging import fisher

NAME = "fisher-merge"
GROUP = "merging"
PAPER = "Matena and Raffel 2022, arXiv 2111.09832 (NeurIPS), eq. 5"
NEEDS = "the merged weights, the sum of the Fisher information (statistics), the weights tuned last"

_FLOOR = 1e-12  # of a task's Fisher: where no task has any, all count alike
_DRAW_SEED = 3_000_017  # makes the drawn labels independent of the order of the data


class FisherMergeOptions(MergingOptions):
    """Settings of Fisher merging; other settings of its label go to the host."""

    samples: Count = Field(256, description="images of a task that its Fisher is estimated from")


class FisherMerge(MergingStrategy):
    """sum_t F_t w_t / sum_t F_t by entry, with the diagonal Fisher F_t at w_t.

    Numerator and denominator are sums, so that the last merged weights and one sum of Fishers stand
    for all tasks. Labels are drawn from the model's own distribution, as in the paper. The paper
    merges models that were tuned apart from each other (start=zero-shot); here each task is tuned
    from the weights tuned last, as CoFiMA (Marouf et al. 2024, arXiv 2312.08977) tunes in sequence.
    """

    options_class = FisherMergeOptions
    repeats_images = True
    sample = "samples"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.label_draws = torch.Generator().manual_seed((self.seeds.data + _DRAW_SEED) % 2**63)
        self.fishers: dict[str, Tensor] | None = None

    def merge_task(self, tuned: dict[str, Tensor]) -> dict[str, Tensor]:
        """Estimate the Fisher of the task, and add it to the sum."""
        images, _ = self.task_sample(self.merge.samples)
        estimate = diagonal_fisher(self, images, self.label_draws)
        new = {name: value.clamp(min=_FLOOR) for name, value in estimate.items()}
        if self.total is None or self.fishers is None:
            self.total, self.fishers = tuned, new
        else:
            self.total = fisher([self.total, tuned], [self.fishers, new], _FLOOR)
            self.fishers = {name: value + new[name] for name, value in self.fishers.items()}
        return self.total
