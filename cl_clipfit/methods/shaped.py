"""Methods that shape the update of every step, by masks or projections."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from cl_clipfit.training.strategy import CLIPStrategy
from cl_clipfit.training.update_shaping import largest_entries, masked

_SCORED = 0.25  # share of a task's images whose gradients choose the entries that train


class ShapedStrategy(CLIPStrategy):
    """Change what a step of the optimiser changed, whatever the optimiser and its weight decay.

    A method overrides `shaped`.
    """

    def __init__(self, **kwargs: Any) -> None:
        # Avalanche gives a class without this method a copy of CLIPStrategy's, which would skip
        # that of a host between the two.
        super().__init__(**kwargs)

    def shaped(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        """Return the values of a parameter after a step, of those before it and the optimiser's."""
        return after

    @torch.no_grad()
    def update_weights(self) -> None:
        """Take the optimiser's step, then shape it."""
        before = {name: p.detach().clone() for name, p in self.selection.items()}
        with torch.enable_grad():
            super().update_weights()
        self.model.load_values({n: self.shaped(n, before[n], p) for n, p in self.selection.items()})


class MaskedStrategy(ShapedStrategy):
    """Train only the entries of each parameter with the largest gradients at a task's start.

    The gradient is that of the method's loss over a quarter of the task's images. A method
    overrides `entries`. Masks are not part of the state: a resumed task chooses the same
    ones again.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.masks: dict[str, Tensor] = {}
        self._trained = 0

    @abstractmethod
    def entries(self, name: str, numbers: int) -> int:
        """Return how many of the entries of a parameter train."""

    def trained_numbers(self) -> int:
        """Return the number of entries that train."""
        return self._trained

    def before_task(self) -> None:
        """Choose the entries."""
        super().before_task()
        gradients = self._gradients()
        counts = {name: self.entries(name, g.numel()) for name, g in gradients.items()}
        self._trained = sum(counts.values())
        self.masks = {name: largest_entries(g, counts[name]) for name, g in gradients.items()}

    def _gradients(self) -> dict[str, Tensor]:
        """Return the sum of the gradients of the loss over batches of the scored images."""
        count = max(1, round(_SCORED * len(self.experience.dataset)))
        images, labels = self.task_sample(count)
        parameters, size = list(self.selection.values()), self.recipe.batch_size
        sums = [torch.zeros_like(p) for p in parameters]
        for batch, targets in zip(images.split(size), labels.split(size), strict=True):
            loss = self.training_loss(batch.to(self.device), targets.to(self.device))
            gradients = torch.autograd.grad(loss * len(batch), parameters, allow_unused=True)
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    total += gradient
        return dict(zip(self.selection, sums, strict=True))

    def shaped(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        """Keep every other entry as it was."""
        return masked(before, super().shaped(name, before, after), self.masks[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the state without the masks."""
        return {name: value for name, value in super().state_dict().items() if name != "masks"}
