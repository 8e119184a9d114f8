"""A linear layer on image features; after a task only its largest changes are retained."""

import torch
from pydantic import Field

from cl_clipfit import LinearAdapterStrategy, ScopeOptions, Share

NAME = "linear-adapter"
GROUP = "adapters"
PAPER = "Liu et al. 2023, arXiv 2310.20348, reconstructed from its abstract"
NEEDS = "the adapter as it was after the previous task"
RECIPE = {"lr": 3e-4}  # how it was chosen: docs/results/defaults.md
# No PUBLISHED: the paper's settings are not known here.


class LinearAdapterOptions(ScopeOptions):
    """Settings of the linear adapter."""

    retained: Share = Field(
        0.5, description="share of the adapter's entries that a task changes, those it moved most"
    )


class LinearAdapter(LinearAdapterStrategy):
    """f = A e(x) / |A e(x)|, with A (d, d) that starts as the identity.

    A reconstruction: the abstract tells of one linear layer after the image encoder, and of
    parameter retention by a measure of importance. Here the importance of an entry in a task is
    |A_t - A_(t-1)|: the most important share takes its new value, all others go back to the
    previous one. 262,144 parameters on ViT-B/16, without a bias.
    """

    extends = True
    options_class = LinearAdapterOptions
    options: LinearAdapterOptions

    @torch.no_grad()
    def after_task(self) -> None:
        """Take back the smaller changes."""
        super().after_task()
        change = (self.matrix - self.matrix_before).abs().flatten()
        kept = torch.zeros_like(change, dtype=torch.bool)
        kept[change.topk(round(self.options.retained * len(change))).indices] = True
        merged = torch.where(kept.view_as(self.matrix), self.matrix, self.matrix_before)
        self.matrix.copy_(merged)
