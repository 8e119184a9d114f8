"""What one task trained, in memory or read from disk tensor by tensor."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import safe_open
from torch import Tensor


class Tunable(Protocol):
    """The interface that a bank needs from a model; `CLIPClassifier` has it."""

    identity: Any
    pretrained_values: dict[str, Tensor]

    def named_parameters(self) -> Any:
        """Yield names and parameters."""

    def load_values(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into parameters by name."""


@dataclass(frozen=True)
class Delta:
    """The parameters that one task trained.

    Attributes:
        task: numbered from 1.
        classes: names of the task's classes.
        parents: its origins, such as the tasks that were merged.
        values: the trained values by parameter name, float32.
    """

    task: int
    classes: list[str]
    parents: list[str]
    values: dict[str, Tensor]

    def difference(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return values - base, by name; `base` may hold more names.

        The bank stores values, not differences: base + (values - base) is not always `values` in
        floating point.
        """
        return {name: value - base[name].to(value) for name, value in self.values.items()}


class LazyValues(Mapping[str, Tensor]):
    """The tensors of a safetensors file by name, on the CPU, none of them kept in memory.

    Args:
        path: the file.
        names: its tensors, in the order of the model.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path, self.names = path, dict.fromkeys(names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names  # without reading the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
