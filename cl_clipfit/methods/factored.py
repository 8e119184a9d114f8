"""Methods whose optimiser changes a few factors of the weights instead of the weights."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cl_clipfit.training.strategy import CLIPStrategy

Values = dict[str, Tensor]


class FactoredStrategy(CLIPStrategy):
    """Train factors f of weights W = compose(base, f), where base is W at the start of a task.

    The selection is W, and always holds the composed values: nothing is left to merge at a task's
    end, there is no cost in inference, and banks, merging and every encoder see plain weights. The
    gradient of a factor is that of W by the chain rule, which is also the gradient of the
    factored layers; it costs the memory of gradients of W. Dropout within the factors is
    impossible. A bank stores W, which is far more than the factors.

    What other parts of a method do to W between steps, such as a pull or a projection, stays:
    a step adds only the difference that the factors make.

    A method overrides `new_factors` and `compose`. Factors start anew in every task, and in every
    further stage of it, where `compose` must return the base.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factors: dict[str, nn.Parameter] = {}
        self._base: Values = {}
        self._trained = 0  # entries of all factors

    @abstractmethod
    def new_factors(self, base: Values) -> dict[str, Tensor]:
        """Return the factors that a task starts with, by names of the method's choice."""

    @abstractmethod
    def compose(self, base: Values, factors: Mapping[str, Tensor]) -> Values:
        """Return the weights by name, as a differentiable function of the factors."""

    def trained_numbers(self) -> int:
        """Return the number of entries of all factors."""
        return self._trained

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Start new factors at the current weights; they form the optimiser's only group."""
        self._base = {name: p.detach().clone() for name, p in self.selection.items()}
        self.factors = {n: nn.Parameter(f) for n, f in self.new_factors(self._base).items()}
        self._trained = sum(factor.numel() for factor in self.factors.values())
        return [{"params": list(self.factors.values())}]

    def update_weights(self) -> None:
        """Pass the gradients of the weights on to the factors, and take a step."""
        before = self.compose(self._base, self.factors)
        reached = [name for name in before if self.selection[name].grad is not None]
        gradients = [self.selection[name].grad for name in reached]
        torch.autograd.backward([before[name] for name in reached], gradients)
        super().update_weights()
        with torch.no_grad():
            after = self.compose(self._base, self.factors)
            # Equal to `after`, bit for bit, unless something else has changed the weights.
            changed = {n: after[n] + (p - before[n]) for n, p in self.selection.items()}
        self.model.load_values(changed)

    def after_task(self) -> None:
        """Drop the factors: the weights hold what they learned."""
        super().after_task()
        self.factors, self._base = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state with the factors, without the base, which a resumed task has again."""
        state = {n: v for n, v in super().state_dict().items() if n not in ("factors", "_base")}
        return {**state, "factors": {name: f.detach() for name, f in self.factors.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state; factors that a task starts later are left to it."""
        super().load_state_dict({n: v for n, v in state.items() if n != "factors"})
        for name, factor in self.factors.items():
            if name in state["factors"]:
                factor.copy_(state["factors"][name])
