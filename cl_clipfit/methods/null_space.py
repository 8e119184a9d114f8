"""Methods that keep the outputs of weight matrices for inputs of earlier tasks."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from cl_clipfit.errors import UserError
from cl_clipfit.evaluation.input_moments import Inputs, input_moments, matrix_inputs
from cl_clipfit.methods.hosted import HostedStrategy
from cl_clipfit.methods.shaped import ShapedStrategy
from cl_clipfit.training.features import Workload
from cl_clipfit.training.update_shaping import principal_directions, projected

_RECORDED = 1024  # images of a task whose inputs are recorded


class NullSpaceStrategy(HostedStrategy, ShapedStrategy):
    """Train a host, and project every update on the null space of the inputs of earlier tasks.

    A method's options have `energy`, the share of the energy of old inputs that stays untouched.
    After every task, the mean of x x^T over its inputs x is added, for each matrix.

    Raises:
        UserError: the host trains something whose inputs are constant or not recorded.
    """

    host_is = "projected"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.moments: dict[str, Tensor] = {}
        self._bases: dict[str, Tensor] = {}
        self._inputs: dict[str, Inputs] = {}

    def select(self) -> None:
        """Refuse a host that trains anything but matrices whose inputs are at hand."""
        super().select()
        known = matrix_inputs(self.model.clip)
        for name, parameter in self.selection.items():
            if parameter.dim() < 2:
                raise UserError(
                    f"updates of {name} cannot be projected: the input of a bias or LayerNorm is"
                    " constant, and only an update of 0 keeps old outputs: choose a host that"
                    " trains matrices, as lora"
                )
            if id(parameter) not in known:
                raise UserError(
                    f"updates of {name} cannot be projected: it does not read a LayerNorm, and its"
                    " inputs are not recorded: choose another host, as lora or prolip"
                )
        self._inputs = {name: known[id(p)] for name, p in self.selection.items()}

    def before_task(self) -> None:
        """Find the directions of old inputs."""
        super().before_task()
        energy, device = self.merge.energy, self.device
        self._bases = {
            name: principal_directions(moment, energy).float().to(device)
            for name, moment in self.moments.items()
        }

    def shaped(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        """Project the update of a matrix."""
        after = super().shaped(name, before, after)
        if name not in self._bases:
            return after
        return projected(before, after, self._bases[name], self._inputs[name].inputs_first)

    def after_task(self) -> None:
        """Add the moments of the task's inputs."""
        super().after_task()
        images, _ = self.task_sample(_RECORDED)
        for name, moment in input_moments(self, self._inputs, images).items():
            self.moments[name] = self.moments.get(name, 0) + moment

    def workload(self) -> Workload:
        """Add the pass over the images that are recorded."""
        work = super().workload()
        return replace(work, sampled=(*work.sampled, (1, _RECORDED)))

    def state_dict(self) -> dict[str, Any]:
        """Return the state without the directions, which every task finds in the moments."""
        return {n: v for n, v in super().state_dict().items() if n not in ("_bases", "_inputs")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state, with the moments on the CPU."""
        super().load_state_dict(state)
        self.moments = {name: moment.cpu() for name, moment in self.moments.items()}
