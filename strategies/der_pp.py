"""DER++: replay of old images with the logits that they had, and with their labels."""

from typing import Any

from pydantic import Field
from torch import Tensor

from cl_clipfit import NotNegative, RehearsalOptions, RehearsalStrategy

NAME = "der-pp"
GROUP = "replay"
PAPER = "Buzzega et al. 2020, arXiv 2004.07211 (NeurIPS), algorithm 2"
NEEDS = "images of earlier tasks (exemplars) with their logits, and what its host keeps"
EXEMPLARS = "memory"


class DerOptions(RehearsalOptions):
    """Settings of DER++; other settings of its label go to the host."""

    alpha: NotNegative = Field(
        0.03, description="weight of the squared distance of logits; Avalanche: 0.1"
    )
    beta: NotNegative = Field(
        0.5, description="weight of the loss on old labels, 0 for DER; Avalanche's default"
    )


class DerPlusPlus(RehearsalStrategy):
    """L_host(new) + alpha mean (h(x') - z')^2 + beta L_host(old), with a draw of old images each.

    The memory is a reservoir of all images that were trained on, in every epoch, each with the
    logits z of the step in which it came. It holds images of the current task as well, and may hold
    one more than once, at different times.

    z holds the classes seen at that time. Later ones have no logit: the paper's network has outputs
    for them from the start, which are pulled to their untrained values; here only beta's term tells
    an old image from a later class. The mean is over the logits that exist, as the released code's
    is over all classes. Logits include CLIP's factor of 100, with which they are as wide as those
    of other networks. Read: the paper's abstract, and two implementations, Mammoth (the authors')
    and Avalanche 0.6, whose own form stores logits at a task's end.
    """

    options_class = DerOptions
    draws_per_step = 2

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Images and labels that are new in a step, then their logits. The memory gets them before
        # the next step: within one, to read logits would wait for the device.
        self.new: list[Tensor] = []

    def keeps_by_class(self) -> bool:
        """Return False: it is a reservoir."""
        return False

    def step_batch(self, batch: list[Tensor]) -> list[Tensor]:
        """Remember what is new, before it is augmented."""
        self._offer()
        self.new = batch[:2]
        return super().step_batch(batch)

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the three terms; the host's loss alone while there is nothing to replay."""
        if not self.replayed:
            return super().compute_loss(logits, labels)
        sizes = [len(self.new[0]), *(len(rows["labels"]) for rows in self.replayed)]
        new, distilled, ranked = logits.split(sizes)
        new_labels, _, old_labels = labels.split(sizes)
        before = self.replayed[0]["logits"].to(logits.device, non_blocking=True)
        distance = self._distance(distilled, before)
        new_loss = super().compute_loss(new, new_labels)
        old_loss = super().compute_loss(ranked, old_labels)
        self.terms.clear()  # those of the host, of the old images
        return (
            self.term("new images", new_loss)
            + self.term("old logits", self.merge.alpha * distance)
            + self.term("old images", self.merge.beta * old_loss)
        )

    @staticmethod
    def _distance(logits: Tensor, before: Tensor) -> Tensor:
        """Return the mean squared distance (B, K) of the classes that were ranked before."""
        unknown = before.isneginf()
        change = logits.masked_fill(unknown, 0) - before.masked_fill(unknown, 0)
        return change.square().sum() / (~unknown).sum()

    def after_step(self) -> None:
        """Remember the logits of what is new."""
        super().after_step()
        assert self.mb_output is not None
        self.new = [*self.new, self.mb_output.detach()[: len(self.new[0])]]

    def after_experience(self) -> None:
        """Offer the images of the last step to the memory."""
        super().after_experience()
        self._offer()

    def _offer(self) -> None:
        """Offer the images of a step to the memory, unless the step was left out."""
        if len(self.new) == 3:
            images, labels, logits = (part.cpu() for part in self.new)
            self.memory.add(labels, lambda kept: {"images": images[kept], "logits": logits[kept]})
        self.new = []
