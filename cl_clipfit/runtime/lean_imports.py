"""Import libraries without what they would bring along for a few of their functions.

`import avalanche` imports all of Avalanche: a metric imports wandb, a data set gdown, a logger
TensorBoard; timm, which open_clip imports, takes wandb too. No narrower import avoids it.
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
    """Stands for a module that is imported once something in it is asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, loader=None)
        if name == _TENSORBOARD:
            self.SummaryWriter = _SummaryWriter  # which Avalanche imports by name

    def __getattr__(self, name: str) -> Any:
        module = import_module(self.__name__)
        if module is self:
            raise AttributeError(f"{self.__name__}.{name}: asked for inside of lean_imports()")
        return getattr(module, name)


class _SummaryWriter:
    """Makes TensorBoard's `SummaryWriter`, which is imported then."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return import_module(_TENSORBOARD).SummaryWriter(*args, **kwargs)

    @staticmethod
    def close(writer: Any) -> None:
        """Close a writer, as `SummaryWriter.close` does when Avalanche calls it."""
        writer.close()


@contextlib.contextmanager
def lean_imports() -> Iterator[None]:
    """Let stand-ins be imported in a `with` block for what is not imported yet.

    They leave `sys.modules` at its end, and import the real module once it is used.
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
