"""A module whose parameters are selected, loaded and put back by name."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn


class TunableModule(nn.Module):
    """Knows which of its parameters train, and the pretrained values of those.

    Attributes:
        pretrained_values: the pretrained value of every parameter that was ever selected, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_values: dict[str, Tensor] = {}

    def train_only(self, parameters: Iterable[nn.Parameter]) -> dict[str, nn.Parameter]:
        """Make exactly these parameters trainable; remember the pretrained values of each.

        Returns:
            the selection by parameter name, in the order of the model.

        Raises:
            ValueError: a parameter does not belong to this model.
        """
        identities = {id(p) for p in parameters}
        selection = {n: p for n, p in self.named_parameters() if id(p) in identities}
        if len(selection) != len(identities):
            raise ValueError(
                "not all selected parameters belong to this model: set new modules and parameters"
                " on the strategy's self.model, as self.model.adapter = adapter"
            )
        self.requires_grad_(False)
        for name, parameter in selection.items():
            parameter.requires_grad_(True)
            self.pretrained_values.setdefault(name, parameter.detach().clone())
        return selection

    @torch.no_grad()
    def load_values(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into parameters by name, bit for bit.

        Raises:
            ValueError: a name or a shape does not exist in this model; nothing is changed then.
        """
        parameters = self._parameters_of(values)
        for name, value in values.items():
            if name not in parameters or parameters[name].shape != value.shape:
                raise ValueError(f"this model has no parameter {name} of shape {[*value.shape]}")
        for name, value in values.items():
            parameters[name].copy_(value)

    def _parameters_of(self, names: Iterable[str]) -> dict[str, nn.Parameter]:
        """Return those of the named parameters that exist; to walk through all takes longer."""
        parameters = {}
        for name in names:
            with contextlib.suppress(AttributeError):
                parameters[name] = self.get_parameter(name)
        return parameters

    @contextlib.contextmanager
    def weights(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Use other values in a `with` block; no backward pass may cross its boundary."""
        before = {n: p.detach().clone() for n, p in self._parameters_of(values).items()}
        self.load_values(values)
        try:
            yield
        finally:
            self.load_values(before)

    @contextlib.contextmanager
    def pretrained_weights(self) -> Iterator[None]:
        """Use the pretrained values in a `with` block."""
        with self.weights(self.pretrained_values):
            yield
