"""L2-SP: any method, with its weights held at the pretrained ones by a squared distance."""

from pydantic import Field
from torch import Tensor

from cl_clipfit import HostedStrategy, HostOptions, NotNegative
from cl_clipfit.training.losses import squared_change

NAME = "l2-sp"
GROUP = "regularisation"
PAPER = "Li, Grandvalet and Davoine 2018, arXiv 1802.01483 (ICML)"
NEEDS = "what its host keeps"


class L2SPOptions(HostOptions):
    """Settings of L2-SP; other settings of its label go to the host."""

    pull: NotNegative = Field(3.0, description="lambda")


class L2SP(HostedStrategy):
    """L_host + lambda / 2 ||w - w0||^2 over what the host trains; w0 is pretrained.

    The pull is to zero-shot CLIP in every task, never to the end of the previous one. Parameters
    that the host adds are held at their initial values; the paper pulls those of new layers to 0
    by a weight of their own. The term is part of the loss, as published, where steps are those of
    SGD: AdamW, the default here, rescales its gradient like any other.
    """

    options_class = L2SPOptions
    host_is = "held at its start"

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Add the squared distance."""
        moved = squared_change(self.selection, self.model.pretrained_values)
        pull = self.term("pull", self.merge.pull / 2 * moved)
        return super().compute_loss(logits, labels) + pull
