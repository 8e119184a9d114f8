"""Continual learning for CLIP: train on streams of tasks, forget less.

The public names load on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_clipfit._version import __version__

if TYPE_CHECKING:  # the same names for type checkers, which do not run `__getattr__`
    from cl_clipfit import merging as merging
    from cl_clipfit import metrics as metrics
    from cl_clipfit.bank.routing import TaskRouter as TaskRouter
    from cl_clipfit.bank.routing import class_statistics as class_statistics
    from cl_clipfit.bank.routing import route as route
    from cl_clipfit.bank.routing import task_posterior as task_posterior
    from cl_clipfit.bank.store import DeltaBank as DeltaBank
    from cl_clipfit.clip import CLIPClassifier as CLIPClassifier
    from cl_clipfit.clip import create_classifier as create_classifier
    from cl_clipfit.clip.encoders.adapters import BlockAdapter as BlockAdapter
    from cl_clipfit.clip.mini import glyphs as glyphs
    from cl_clipfit.clip.mini import shapes as shapes
    from cl_clipfit.commands.train import run as run
    from cl_clipfit.config.command import RunConfig as RunConfig
    from cl_clipfit.config.options import Count as Count
    from cl_clipfit.config.options import Names as Names
    from cl_clipfit.config.options import NotNegative as NotNegative
    from cl_clipfit.config.options import Number as Number
    from cl_clipfit.config.options import Options as Options
    from cl_clipfit.config.options import Parts as Parts
    from cl_clipfit.config.options import Positive as Positive
    from cl_clipfit.config.options import Recipe as Recipe
    from cl_clipfit.config.options import ScopeOptions as ScopeOptions
    from cl_clipfit.config.options import Share as Share
    from cl_clipfit.data.composed import base_and_novel as base_and_novel
    from cl_clipfit.data.composed import one_after_the_other as one_after_the_other
    from cl_clipfit.data.images.lazy import ImageFiles as ImageFiles
    from cl_clipfit.data.source import DataRequest as DataRequest
    from cl_clipfit.data.source import ImageSet as ImageSet
    from cl_clipfit.data.source import Source as Source
    from cl_clipfit.data.streams import Scenario as Scenario
    from cl_clipfit.data.streams import build_scenario as build_scenario
    from cl_clipfit.errors import UserError as UserError
    from cl_clipfit.errors import nearest as nearest
    from cl_clipfit.evaluation.fisher import diagonal_fisher as diagonal_fisher
    from cl_clipfit.evaluation.moments import norm_moments as norm_moments
    from cl_clipfit.experiment.load import LoadedRun as LoadedRun
    from cl_clipfit.experiment.load import load_run as load_run
    from cl_clipfit.experiment.prepare import load_scenario as load_scenario
    from cl_clipfit.experiment.reopen import FinishedRun as FinishedRun
    from cl_clipfit.experiment.reopen import open_run as open_run
    from cl_clipfit.methods.adapter import AdapterStrategy as AdapterStrategy
    from cl_clipfit.methods.adapter import LinearAdapterStrategy as LinearAdapterStrategy
    from cl_clipfit.methods.block_adapters import BlockAdapterStrategy as BlockAdapterStrategy
    from cl_clipfit.methods.closed_form import ClosedFormStrategy as ClosedFormStrategy
    from cl_clipfit.methods.closed_form import RandomFeaturesOptions as RandomFeaturesOptions
    from cl_clipfit.methods.closed_form import RandomFeaturesStrategy as RandomFeaturesStrategy
    from cl_clipfit.methods.closed_form import RandomRidgeStrategy as RandomRidgeStrategy
    from cl_clipfit.methods.closed_form import RecursiveStrategy as RecursiveStrategy
    from cl_clipfit.methods.closed_form import StatisticsStrategy as StatisticsStrategy
    from cl_clipfit.methods.closed_form import encode_experience as encode_experience
    from cl_clipfit.methods.continued import ContinuedOptions as ContinuedOptions
    from cl_clipfit.methods.continued import ContinuedStrategy as ContinuedStrategy
    from cl_clipfit.methods.continued import Stage as Stage
    from cl_clipfit.methods.factored import FactoredStrategy as FactoredStrategy
    from cl_clipfit.methods.first_session import AfterFirstSession as AfterFirstSession
    from cl_clipfit.methods.first_session import FirstSession as FirstSession
    from cl_clipfit.methods.hosted import HostedStrategy as HostedStrategy
    from cl_clipfit.methods.hosted import HostOptions as HostOptions
    from cl_clipfit.methods.merged import ApartOptions as ApartOptions
    from cl_clipfit.methods.merged import MergingOptions as MergingOptions
    from cl_clipfit.methods.merged import MergingStrategy as MergingStrategy
    from cl_clipfit.methods.null_space import NullSpaceStrategy as NullSpaceStrategy
    from cl_clipfit.methods.per_task import PerTaskStrategy as PerTaskStrategy
    from cl_clipfit.methods.prompt import PromptOptions as PromptOptions
    from cl_clipfit.methods.prompt import PromptStrategy as PromptStrategy
    from cl_clipfit.methods.rehearsal import RehearsalOptions as RehearsalOptions
    from cl_clipfit.methods.rehearsal import RehearsalStrategy as RehearsalStrategy
    from cl_clipfit.methods.shaped import MaskedStrategy as MaskedStrategy
    from cl_clipfit.methods.shaped import ShapedStrategy as ShapedStrategy
    from cl_clipfit.methods.text_distillation import TextDistillation as TextDistillation
    from cl_clipfit.metrics.predictions import Predictions as Predictions
    from cl_clipfit.report.results import Results as Results
    from cl_clipfit.report.results import load_results as load_results
    from cl_clipfit.runtime.determinism import Seeds as Seeds
    from cl_clipfit.runtime.out_of_memory import encode_images as encode_images
    from cl_clipfit.runtime.progress import Progress as Progress
    from cl_clipfit.storage.history import read_history as read_history
    from cl_clipfit.storage.predictions import read_predictions as read_predictions
    from cl_clipfit.storage.result import Result as Result
    from cl_clipfit.training import selection as selection
    from cl_clipfit.training.features import StepFeatures as StepFeatures
    from cl_clipfit.training.features import Workload as Workload
    from cl_clipfit.training.features import keep_columns as keep_columns
    from cl_clipfit.training.features import label_index as label_index
    from cl_clipfit.training.features import read_samples as read_samples
    from cl_clipfit.training.plugins import stock_arguments as stock_arguments
    from cl_clipfit.training.plugins import stock_images as stock_images
    from cl_clipfit.training.plugins import stock_plugin as stock_plugin
    from cl_clipfit.training.strategy import CLIPStrategy as CLIPStrategy

# In a checkout, strategies/ and scenarios/ are next to the package; installed, inside it.
_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "strategies").is_dir():
    __path__.append(str(_CHECKOUT))

# Where each public name is; the last five are modules.
_HOMES = {
    "run": "cl_clipfit.commands.train",
    "Results": "cl_clipfit.report.results",
    "load_results": "cl_clipfit.report.results",
    "Result": "cl_clipfit.storage.result",
    "Predictions": "cl_clipfit.metrics.predictions",
    "read_history": "cl_clipfit.storage.history",
    "read_predictions": "cl_clipfit.storage.predictions",
    "open_run": "cl_clipfit.experiment.reopen",
    "FinishedRun": "cl_clipfit.experiment.reopen",
    "load_run": "cl_clipfit.experiment.load",
    "LoadedRun": "cl_clipfit.experiment.load",
    "load_scenario": "cl_clipfit.experiment.prepare",
    "Seeds": "cl_clipfit.runtime.determinism",
    "AdapterStrategy": "cl_clipfit.methods.adapter",
    "AfterFirstSession": "cl_clipfit.methods.first_session",
    "ApartOptions": "cl_clipfit.methods.merged",
    "BlockAdapter": "cl_clipfit.clip.encoders.adapters",
    "BlockAdapterStrategy": "cl_clipfit.methods.block_adapters",
    "CLIPClassifier": "cl_clipfit.clip",
    "CLIPStrategy": "cl_clipfit.training.strategy",
    "ClosedFormStrategy": "cl_clipfit.methods.closed_form",
    "RandomFeaturesOptions": "cl_clipfit.methods.closed_form",
    "RandomFeaturesStrategy": "cl_clipfit.methods.closed_form",
    "RandomRidgeStrategy": "cl_clipfit.methods.closed_form",
    "RecursiveStrategy": "cl_clipfit.methods.closed_form",
    "StatisticsStrategy": "cl_clipfit.methods.closed_form",
    "ContinuedOptions": "cl_clipfit.methods.continued",
    "ContinuedStrategy": "cl_clipfit.methods.continued",
    "FactoredStrategy": "cl_clipfit.methods.factored",
    "HostOptions": "cl_clipfit.methods.hosted",
    "HostedStrategy": "cl_clipfit.methods.hosted",
    "NullSpaceStrategy": "cl_clipfit.methods.null_space",
    "MaskedStrategy": "cl_clipfit.methods.shaped",
    "ShapedStrategy": "cl_clipfit.methods.shaped",
    "Count": "cl_clipfit.config.options",
    "DataRequest": "cl_clipfit.data.source",
    "DeltaBank": "cl_clipfit.bank.store",
    "FirstSession": "cl_clipfit.methods.first_session",
    "ImageFiles": "cl_clipfit.data.images.lazy",
    "ImageSet": "cl_clipfit.data.source",
    "LinearAdapterStrategy": "cl_clipfit.methods.adapter",
    "MergingOptions": "cl_clipfit.methods.merged",
    "MergingStrategy": "cl_clipfit.methods.merged",
    "Names": "cl_clipfit.config.options",
    "NotNegative": "cl_clipfit.config.options",
    "Number": "cl_clipfit.config.options",
    "Options": "cl_clipfit.config.options",
    "PerTaskStrategy": "cl_clipfit.methods.per_task",
    "Positive": "cl_clipfit.config.options",
    "Parts": "cl_clipfit.config.options",
    "Progress": "cl_clipfit.runtime.progress",
    "PromptOptions": "cl_clipfit.methods.prompt",
    "PromptStrategy": "cl_clipfit.methods.prompt",
    "Recipe": "cl_clipfit.config.options",
    "RehearsalOptions": "cl_clipfit.methods.rehearsal",
    "RehearsalStrategy": "cl_clipfit.methods.rehearsal",
    "RunConfig": "cl_clipfit.config.command",
    "Scenario": "cl_clipfit.data.streams",
    "ScopeOptions": "cl_clipfit.config.options",
    "Share": "cl_clipfit.config.options",
    "Source": "cl_clipfit.data.source",
    "Stage": "cl_clipfit.methods.continued",
    "StepFeatures": "cl_clipfit.training.features",
    "TaskRouter": "cl_clipfit.bank.routing",
    "TextDistillation": "cl_clipfit.methods.text_distillation",
    "UserError": "cl_clipfit.errors",
    "Workload": "cl_clipfit.training.features",
    "base_and_novel": "cl_clipfit.data.composed",
    "build_scenario": "cl_clipfit.data.streams",
    "class_statistics": "cl_clipfit.bank.routing",
    "create_classifier": "cl_clipfit.clip",
    "diagonal_fisher": "cl_clipfit.evaluation.fisher",
    "keep_columns": "cl_clipfit.training.features",
    "label_index": "cl_clipfit.training.features",
    "nearest": "cl_clipfit.errors",
    "norm_moments": "cl_clipfit.evaluation.moments",
    "one_after_the_other": "cl_clipfit.data.composed",
    "encode_experience": "cl_clipfit.methods.closed_form",
    "encode_images": "cl_clipfit.runtime.out_of_memory",
    "read_samples": "cl_clipfit.training.features",
    "route": "cl_clipfit.bank.routing",
    "stock_arguments": "cl_clipfit.training.plugins",
    "stock_images": "cl_clipfit.training.plugins",
    "stock_plugin": "cl_clipfit.training.plugins",
    "task_posterior": "cl_clipfit.bank.routing",
    "glyphs": "cl_clipfit.clip.mini.glyphs",
    "merging": "cl_clipfit.merging",
    "metrics": "cl_clipfit.metrics",
    "selection": "cl_clipfit.training.selection",
    "shapes": "cl_clipfit.clip.mini.shapes",
}
__all__ = ["__version__", *_HOMES]


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'cl_clipfit' has no attribute '{name}'")
        home = import_module(_HOMES[name])
        return home if home.__name__.endswith(f".{name}") else getattr(home, name)
