"""Tune the LayerNorms of the image tower, held near their pretrained values."""

from collections.abc import Iterable

from pydantic import Field
from torch import Tensor, nn

from cl_clipfit import CLIPStrategy, Options


class Pull(Options):
    pull: float = Field(0.01, ge=0, description="weight of the squared distance to zero-shot")


class ImageNorms(CLIPStrategy):
    options_class = Pull

    def trainable(self) -> Iterable[nn.Parameter]:
        norms = (m for m in self.model.clip.visual.modules() if isinstance(m, nn.LayerNorm))
        return [p for norm in norms for p in norm.parameters()]

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        start = self.model.pretrained_values
        moved = sum((p - start[name]).square().sum() for name, p in self.selection.items())
        return super().compute_loss(logits, labels) + self.term("pull", self.options.pull * moved)
