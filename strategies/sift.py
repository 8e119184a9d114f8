"""SIFT: the few entries of every weight matrix that have the largest gradients in a task."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field
from torch import nn

from cl_clipfit import MaskedStrategy, Number, ScopeOptions, selection

NAME = "sift"
GROUP = "update shaping"
PAPER = "Song et al. 2024, arXiv 2312.11875 (ICML)"
NEEDS = "nothing of earlier tasks"
RECIPE = {"lr": 3e-3}  # how it was chosen: docs/results/defaults.md
# Of RoBERTa-large, without its warm-up over 6 % of the steps.
PUBLISHED = {"optimizer": "adamw", "lr": 7e-5, "weight_decay": 0.1, "epochs": 10, "share": 0.008}


class SiftOptions(ScopeOptions):
    """Settings of SIFT."""

    share: Annotated[float, Number, Field(gt=0, le=1)] = Field(
        0.01, description="share of the entries of a matrix that train, and one more"
    )


class Sift(MaskedStrategy):
    """Cross-entropy; w <- w + m * (the optimiser's update), m = 1[|gradient| among the largest].

    Masks are chosen anew for every task, by a quarter of its images; the paper takes the first
    batch. In the released code, an update waits for the next backward pass, the last one is lost,
    and weight decay acts on zeros; here every step counts, and decay reaches the masked entries.
    All matrices of the blocks of both towers take part: on ViT-B/16, 1 % is 1,226,868 entries.
    """

    extends = True
    options_class = SiftOptions
    options: SiftOptions

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return the weight matrices of all blocks."""
        return selection.select_matrices(self.model.clip)

    def entries(self, name: str, numbers: int) -> int:
        """Return the share of a matrix, and one more entry, as the released code does."""
        return min(int(self.options.share * numbers) + 1, numbers)
