"""Continual learning for CLIP: train on streams of tasks, forget less.

The public names load on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_clipfit.clip import CLIPClassifier, create_classifier
    from cl_clipfit.config import Options, Recipe
    from cl_clipfit.continued import ContinuedOptions, ContinuedStrategy
    from cl_clipfit.data.source import DataRequest, ImageSet, Source
    from cl_clipfit.data.streams import Scenario, build_scenario
    from cl_clipfit.determinism import Seeds
    from cl_clipfit.errors import UserError
    from cl_clipfit.strategy import CLIPStrategy
    from cl_clipfit.tuning.bank import Delta, DeltaBank

__version__ = "0.1.0"

_HOMES = {
    "CLIPClassifier": "cl_clipfit.clip",
    "CLIPStrategy": "cl_clipfit.strategy",
    "ContinuedOptions": "cl_clipfit.continued",
    "ContinuedStrategy": "cl_clipfit.continued",
    "DataRequest": "cl_clipfit.data.source",
    "Delta": "cl_clipfit.tuning.bank",
    "DeltaBank": "cl_clipfit.tuning.bank",
    "ImageSet": "cl_clipfit.data.source",
    "Options": "cl_clipfit.config",
    "Recipe": "cl_clipfit.config",
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
    "build_scenario",
    "create_classifier",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'cl_clipfit' has no attribute '{name}'")
