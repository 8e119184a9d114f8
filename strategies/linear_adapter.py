"""A linear layer on image features; after a task only its largest changes are retained."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from cl_clipfit import AdapterStrategy, ScopeOptions, Share

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


class LinearAdapter(AdapterStrategy):
    """f = A e(x) / |A e(x)|, with A (d, d) that starts as the identity.

    A reconstruction: the abstract tells of one linear layer after the image encoder, and of
    parameter retention by a measure of importance. Here the importance of an entry in a task is
    |A_t - A_(t-1)|: the most important share takes its new value, all others go back to the
    previous one. 262,144 parameters on ViT-B/16, without a bias.
    """

    options_class = LinearAdapterOptions
    options: LinearAdapterOptions

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        start = torch.eye(self.model.zero_shot_text_features.shape[1], device=self.device)
        self.model.linear_adapter = nn.Parameter(start, requires_grad=False)
        self._before: Tensor | None = None

    @property
    def matrix(self) -> nn.Parameter:
        """Return A (d, d), which belongs to the model."""
        return cast(nn.Parameter, self.model.linear_adapter)

    def trainable(self) -> Iterable[nn.Parameter]:
        """Return A."""
        return [self.matrix]

    def adapt(self, features: Tensor) -> Tensor:
        """Map features by A, to unit length."""
        return nn.functional.normalize(features @ self.matrix.T, dim=-1)

    def zero_shot_point(self) -> dict[str, Tensor]:
        """Return the identity."""
        return {name: self.model.pretrained_values[name] for name in self.selection}

    def before_task(self) -> None:
        """Keep A as it is before the task."""
        super().before_task()
        self._before = self.matrix.detach().clone()

    @torch.no_grad()
    def after_task(self) -> None:
        """Take back the smaller changes."""
        super().after_task()
        assert self._before is not None
        change = (self.matrix - self._before).abs().flatten()
        kept = torch.zeros_like(change, dtype=torch.bool)
        kept[change.topk(round(self.options.retained * len(change))).indices] = True
        merged = torch.where(kept.view_as(self.matrix), self.matrix, self._before)
        self.matrix.copy_(merged)
