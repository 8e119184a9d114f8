"""C-LN: LayerNorms of its own for each task, chosen by the nearest key for each image."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cl_clipfit import PerTaskStrategy, ScopeOptions, selection

NAME = "c-ln"
GROUP = "weights per task"
PAPER = "De Min et al. 2023, arXiv 2308.09610 (ICCV workshop), two-stage variant"
NEEDS = "the LayerNorms and the key of each task"
RECIPE = {"lr": 1e-3}
# No PUBLISHED: the learning rate 5e-3 of the paper is for a head that CLIP does not have.


class CLNOptions(ScopeOptions):
    """Settings of C-LN."""

    start: Literal["tuned", "zero-shot"] = Field(
        "tuned", description="where each task starts: at the LayerNorms tuned last, or at zero-shot"
    )


class ContinualLayerNorm(PerTaskStrategy):
    """Train the image tower's LayerNorms on each task; cross-entropy over the task's classes.

    The query of an image is its zero-shot feature, and the key of a task the direction with the
    largest mean cosine similarity to the queries of its images. The paper learns keys by gradient
    steps on just that; here a key is its closed form, the mean of the unit queries. As in the
    released code, the LayerNorms of a task start at those of the task before. Its second stage
    trains a linear classifier again on the chosen LayerNorms; CLIP classifies by its frozen text.
    """

    options_class = CLNOptions
    options: CLNOptions

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keys: list[Tensor] = []

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return the weights and biases of the image tower's LayerNorms."""
        return selection.select_layer_norms(self.model.clip)

    def before_task(self) -> None:
        """Load the pretrained LayerNorms if the task starts there."""
        super().before_task()
        if self.options.start == "zero-shot":
            self.model.load_values(self.zero_shot_point())

    def remember(self, features: Tensor, labels: Tensor) -> None:
        """Keep the key of the task."""
        self.keys = [*self.keys, F.normalize(features.mean(0), dim=-1)]

    def recall(self, statistics: Sequence[Mapping[str, Tensor]]) -> None:
        """Compute the keys from class means and counts."""
        self.keys = [
            F.normalize(of_task["counts"].to(of_task["means"]) @ of_task["means"], dim=-1)
            for of_task in statistics
        ]

    def shares(self, features: Tensor) -> Tensor:
        """Return 1 for the task with the nearest key: (B, T)."""
        keys = torch.stack(self.keys).to(features)
        return F.one_hot((features @ keys.T).argmax(1), len(keys)).to(torch.float32)
