"""Methods that train another one, their host, on each task together with images of old tasks."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from cl_clipfit.config.options import Count, Options
from cl_clipfit.methods.hosted import HostedStrategy, HostOptions
from cl_clipfit.training.features import Workload
from cl_clipfit.training.memory import Memory

_MEMORY_SEED = 5_000_003  # makes what is kept and replayed independent of data order and crops


class RehearsalOptions(HostOptions):
    """Settings of methods with a memory of images; other settings of their label go to the host."""

    memory: Count = Field(
        200, description="images of old tasks that are kept, in all; Avalanche's default"
    )
    replayed: Count | None = Field(
        None, description="old images in each draw of a step; default as many as new ones"
    )


class RehearsalStrategy(HostedStrategy):
    """Train a host on the images of a task and on images drawn from a memory of old ones.

    Images are kept as they come from the data, and augmented anew whenever they are drawn. The loss
    ranks all classes seen, whatever the host ranks, since old images are of old classes. A method
    fills `self.memory`, whose rows include "images".

    Args:
        **kwargs: as in `HostedStrategy`.

    Attributes:
        memory: what is kept.
        replayed: the rows of each draw of the current step; empty outside of a step.
    """

    host_is = "trained with old images"
    options_class: ClassVar[type[Options]] = RehearsalOptions
    draws_per_step: ClassVar[int] = 1

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        seed = self.seeds.data + _MEMORY_SEED
        self.memory = Memory(self.merge.memory, self.keeps_by_class(), seed)
        self.replayed: list[dict[str, Tensor]] = []

    @abstractmethod
    def keeps_by_class(self) -> bool:
        """Return whether the memory holds equally many images of each class."""

    def label_space(self) -> Sequence[int]:
        """Return all classes seen."""
        return self.seen_classes

    def step_batch(self, batch: list[Tensor]) -> list[Tensor]:
        """Append the images and labels of `draws_per_step` draws."""
        images, labels, *more = super().step_batch(batch)
        count = self.merge.replayed or self.recipe.batch_size
        draws = range(self.draws_per_step if len(self.memory) else 0)
        self.replayed = [self.memory.draw(count) for _ in draws]
        old_images = [rows["images"] for rows in self.replayed]
        old_labels = [rows["labels"] for rows in self.replayed]
        more = [torch.cat([part, *(part.new_zeros(len(y)) for y in old_labels)]) for part in more]
        return [torch.cat([images, *old_images]), torch.cat([labels, *old_labels]), *more]

    def after_step(self) -> None:
        """Forget what was replayed."""
        super().after_step()
        self.replayed = []

    def workload(self) -> Workload:
        """Add the passes over old images."""
        work = super().workload()
        share = (self.merge.replayed or self.recipe.batch_size) / self.recipe.batch_size
        return replace(work, passes=work.passes * (1 + self.draws_per_step * share))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the host, and the memory."""
        return {**super().state_dict(), "memory": self.memory.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        super().load_state_dict({n: v for n, v in state.items() if n != "memory"})
        self.memory.load_state(state["memory"])
