"""Import libraries without their large dependencies that only a few functions need.

`import avalanche` imports all of Avalanche: a metric imports wandb, a data set gdown, and a logger
TensorBoard; timm, which open_clip imports, imports wandb too. No narrower import avoids this.
"""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_TENSORBOARD = "torch.utils.tensorboard"
_DEFERRED = ("wandb", "gdown", _TENSORBOARD)


class _StandIn(ModuleType):
    """A placeholder for a module, which is imported when one of its attributes is accessed."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, loader=None)
        if name == _TENSORBOARD:
            self.SummaryWriter = _SummaryWriter  # Avalanche imports it by name

    def __getattr__(self, name: str) -> Any:
        module = import_module(self.__name__)
        if module is self:
            raise AttributeError(f"{self.__name__}.{name}: accessed inside of lean_imports()")
        return getattr(module, name)


class _SummaryWriter:
    """Imports TensorBoard's `SummaryWriter` and creates one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return import_module(_TENSORBOARD).SummaryWriter(*args, **kwargs)

    @staticmethod
    def close(writer: Any) -> None:
        """Close a writer, as `SummaryWriter.close` does when Avalanche calls it."""
        writer.close()


@contextlib.contextmanager
def lean_imports() -> Iterator[None]:
    """Import placeholders instead of the deferred modules in a `with` block, if not imported yet.

    They are removed from `sys.modules` at its end, and import the real module when it is used.
    """
    stand_ins = {name: _StandIn(name) for name in _DEFERRED if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="no QP solver found")  # of Avalanche
            yield
    finally:
        for name in stand_ins:
            del sys.modules[name]
