"""Import libraries without their large dependencies that only a few functions need.

`import avalanche` imports all of Avalanche, whose metrics, loggers and data sets need wandb, gdown,
TensorBoard, Matplotlib and torchmetrics (and with it SciPy's signal processing); no narrower import
avoids this. open_clip imports timm for the architectures that timm defines, and torchvision all of
TorchDynamo for one function.
"""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

DEFERRED = (
    "GPUtil",
    "gdown",
    "matplotlib",
    "matplotlib.axes",
    "matplotlib.cm",
    "matplotlib.figure",
    "matplotlib.patches",
    "matplotlib.pyplot",
    "qpsolvers",
    "timm",
    "timm.layers",
    "torch._dynamo.utils",
    "torch.utils.tensorboard",
    "torchmetrics",
    "torchmetrics.functional",
    "wandb",
)


class _Name:
    """A function or class of a deferred module, which is imported when the name is used."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _real(self) -> Any:
        return getattr(import_module(self._module), self._name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what `typing` and `inspect` ask of an annotation
            raise AttributeError(name)
        return getattr(self._real(), name)

    def __instancecheck__(self, instance: object) -> bool:
        # Of a module that was never imported there are no instances.
        return self._module in sys.modules and isinstance(instance, self._real())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._real(),)


class _StandIn(ModuleType):
    """A placeholder for a module, which is imported when one of its attributes is accessed."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, loader=None)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is not self:  # after lean_imports()
            return getattr(import_module(self.__name__), name)
        if name.startswith("__"):  # what the import system asks of a module
            raise AttributeError(name)
        return _Name(self.__name__, name)


@contextlib.contextmanager
def lean_imports() -> Iterator[None]:
    """Import placeholders instead of the deferred modules in a `with` block, if not imported yet.

    They are removed from `sys.modules` at its end, and import the real module when it is used.
    """
    stand_ins = {name: _StandIn(name) for name in DEFERRED if name not in sys.modules}
    for name, stand_in in stand_ins.items():
        package, _, child = name.rpartition(".")
        if package in stand_ins:
            setattr(stand_ins[package], child, stand_in)
    sys.modules.update(stand_ins)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="no QP solver found")  # of Avalanche
            yield
    finally:
        for name in stand_ins:
            del sys.modules[name]
