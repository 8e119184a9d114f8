"""Replay: any method on each task's images together with a few of those of earlier tasks."""

from typing import Literal

import torch
from pydantic import Field

from cl_clipfit import RehearsalOptions, RehearsalStrategy, read_samples

NAME = "replay"
GROUP = "replay"
PAPER = "experience replay: Chaudhry et al. 2019, arXiv 1902.10486; buffers as in Avalanche 0.6"
NEEDS = "images of earlier tasks (exemplars), and what its host keeps"
EXEMPLARS = "memory"


class ReplayOptions(RehearsalOptions):
    """Settings of replay; other settings of its label go to the host."""

    keep: Literal["class-balanced", "reservoir"] = Field(
        "class-balanced", description="equally many images of each class, or a draw of all images"
    )


class Replay(RehearsalStrategy):
    """L_host over a batch of the task and as many images drawn from the memory.

    The memory is filled when a task ends, as by Avalanche's `ReplayPlugin`, so that no image is in
    it twice; of an online stream, after every experience. `memory` is the number of images in all;
    the field's other customs are 20 per class (iCaRL, arXiv 1611.07725), which it is on ten
    classes, and 500 or 5,120 (arXiv 2004.07211).

    Known differences: the plug-in divides its buffer by experience by default, and cycles through
    it without repetition, where each step here draws anew, as in the code of Mammoth. Mammoth and
    the paper add images as they are trained on, in every epoch.
    """

    options_class = ReplayOptions

    def keeps_by_class(self) -> bool:
        """Return whether that is what the option says."""
        return bool(self.merge.keep == "class-balanced")

    def after_experience(self) -> None:
        """Give the images that were just learned to the memory."""
        super().after_experience()
        data = self.experience.dataset
        labels = torch.as_tensor(list(data.targets))
        self.memory.add(labels, lambda kept: {"images": read_samples(data, kept.tolist())[0]})
