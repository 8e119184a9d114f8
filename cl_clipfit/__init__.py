"""Continual learning for CLIP: train on streams of tasks, forget less.

The public names load on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_clipfit._version import __version__

if TYPE_CHECKING:
    from cl_clipfit.bank.store import Delta, DeltaBank
    from cl_clipfit.clip import CLIPClassifier, create_classifier
    from cl_clipfit.config.options import Options, Recipe
    from cl_clipfit.data.source import DataRequest, ImageSet, Source
    from cl_clipfit.data.streams import Scenario, build_scenario
    from cl_clipfit.errors import UserError
    from cl_clipfit.methods.continued import ContinuedOptions, ContinuedStrategy
    from cl_clipfit.runtime.determinism import Seeds
    from cl_clipfit.training.strategy import CLIPStrategy

# In a checkout, strategies/ and scenarios/ stand beside the package; installed, inside it.
_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "strategies").is_dir():
    __path__.append(str(_CHECKOUT))

_HOMES = {
    "CLIPClassifier": "cl_clipfit.clip",
    "CLIPStrategy": "cl_clipfit.training.strategy",
    "ContinuedOptions": "cl_clipfit.methods.continued",
    "ContinuedStrategy": "cl_clipfit.methods.continued",
    "DataRequest": "cl_clipfit.data.source",
    "Delta": "cl_clipfit.bank.store",
    "DeltaBank": "cl_clipfit.bank.store",
    "ImageSet": "cl_clipfit.data.source",
    "Options": "cl_clipfit.config.options",
    "Recipe": "cl_clipfit.config.options",
    "Scenario": "cl_clipfit.data.streams",
    "Seeds": "cl_clipfit.determinism",
    "Source": "cl_clipfit.data.source",
    "UserError": "cl_clipfit.errors",
    "build_scenario": "cl_clipfit.data.streams",
    "create_classifier": "cl_clipfit.clip",
}
__all__ = [
    "CLIPClassifier",
    "CLIPStrategy",
    "ContinuedOptions",
    "ContinuedStrategy",
    "DataRequest",
    "Delta",
    "DeltaBank",
    "ImageSet",
    "Options",
    "Recipe",
    "Scenario",
    "Seeds",
    "Source",
    "UserError",
    "__version__",
    "build_scenario",
    "create_classifier",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'cl_clipfit' has no attribute '{name}'")
