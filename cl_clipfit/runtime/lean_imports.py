"""Import libraries without their large dependencies that only a few functions need.

`import avalanche` imports all of Avalanche, whose metrics, loggers and data sets need wandb, gdown,
TensorBoard, Matplotlib and torchmetrics (and with it SciPy's signal processing); no narrower import
avoids this. open_clip imports timm for the architectures that timm defines, and torchvision all of
TorchDynamo for one function.
"""

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
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
_AVALANCHE_CONFIG = "avalanche.benchmarks.datasets.dataset_utils"


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
    _read_avalanche_config()
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


def _read_avalanche_config() -> None:
    """Run the module that reads `~/.avalanche/config.json`, in case it would fail on import.

    It writes that file if it is missing, which not every home allows; without a home it would write
    a folder `~` here, and two first imports at once may read half a file. Then it gets a temporary
    home, and its default settings.
    """
    package = find_spec("avalanche")
    if "avalanche" in sys.modules or package is None or package.origin is None:
        return
    file = Path(package.origin).parent / "benchmarks" / "datasets" / "dataset_utils.py"
    spec = spec_from_file_location(_AVALANCHE_CONFIG, file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    try:
        Path.home()  # raises if there is none
        spec.loader.exec_module(module)
    except (OSError, RuntimeError, ValueError):
        with tempfile.TemporaryDirectory() as home, _environment("HOME", home):
            spec.loader.exec_module(module)
        module.set_dataset_root("~/.avalanche/data")  # as its default
        sys.modules[_AVALANCHE_CONFIG] = module


@contextlib.contextmanager
def any_backend() -> Iterator[None]:
    """Import Matplotlib in a `with` block, whatever backend the environment names.

    Notebooks set MPLBACKEND for all that they start, and the import fails for a backend that is not
    installed. The figures here use none.
    """
    if "matplotlib" in sys.modules:
        yield
        return
    with _environment("MPLBACKEND", None):
        yield
    backend = os.environ.get("MPLBACKEND")
    if backend:
        with contextlib.suppress(ValueError):
            sys.modules["matplotlib"].rcParams["backend"] = backend


@contextlib.contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """Set or remove an environment variable in a `with` block."""
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before
