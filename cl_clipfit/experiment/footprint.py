"""What a run takes on disk and its data in memory, from shapes alone: nothing is run for it.

Tensors are counted exactly, unless a method keeps some of its own; figures, tables and compressed
predictions by what runs were found to write.
"""

import math
from dataclasses import dataclass
from typing import Any

from cl_clipfit.data.streams import Scenario
from cl_clipfit.experiment.continuation import why_not
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.methods.continued import ContinuedStrategy
from cl_clipfit.methods.merged import MergingStrategy
from cl_clipfit.training.strategy import CLIPStrategy

_HEADER = 300  # bytes of a tensor file
_RNG = 21_000  # of the state of all generators
_ROW = 900  # of a row of predictions, besides the images
# Of figures, as PNG and SVG: the curves, more with probes and by task up to ten; what moved.
_CURVES, _CURVES_OF_PROBES, _CURVES_OF_TASK, _MOVED = 100_000, 45_000, 12_000, 140_000
_LINE = 150  # of the history
_LINES = 100  # of a task at least, if it has so many steps
_CELL = 16  # of a table in JSON
_RECORDS = 10_000  # result, settings and manifest without what grows
_ENTRY = 700  # of a task in the index of the bank, and as much in result and manifest
_PICTURES, _SIDE = 24, 48  # kept for reports, and their longer side
_SUMMARY, _METHOD_IN_SUMMARY = 135_000, 55_000  # of a command: its report and its comparison


@dataclass(frozen=True)
class Footprint:
    """Bytes that a run takes on disk.

    Attributes:
        bank: of each task.
        state: what `extend` needs besides.
        predictions: for all test images, in all rows.
        other: figures, pictures, history and tables.
        checkpoints: at most at a time, until the run is complete.
    """

    bank: list[int]
    state: int
    predictions: int
    other: int
    checkpoints: int

    @property
    def folder(self) -> int:
        """What is left of the run when it is complete."""
        return sum(self.bank) + self.state + self.predictions + self.other


def footprint(
    plan: RunPlan, strategy: CLIPStrategy, scenario: Scenario, steps: int, *,
    probes: bool, predictions: bool,
) -> Footprint:  # fmt: skip
    """Return what a run takes on disk.

    Args:
        plan: the run.
        strategy: its strategy, whose first selection is made.
        scenario: the stream of tasks.
        steps: of the optimiser, over all tasks.
        probes: whether there are any.
        predictions: whether predictions are kept.
    """
    bank, rows = bank_bytes(strategy, scenario), scenario.trained_tasks + 1
    trains = plan.recipe is not None and strategy.learning == "gradient"
    kept = rows * _row(len(scenario.test), len(scenario.class_names)) if predictions else 0
    pictures = _pictures(scenario.test.images) if predictions else 0
    tasks = len(scenario.task_classes)
    history = _LINE * min(steps, 2 * _LINES * scenario.trained_tasks)
    tables = 3 * rows * tasks * _CELL + 2 * _ENTRY * tasks
    figures = _CURVES + _CURVES_OF_PROBES * probes + _CURVES_OF_TASK * min(tasks, 10)
    figures += _MOVED * bool(strategy.selection)
    return Footprint(
        bank, _state(plan, strategy, bank, scenario) if trains else 0, kept,
        figures + pictures + history + tables + _RECORDS,
        _checkpoints(plan, strategy, scenario) if trains else 0,
    )  # fmt: skip


def summary_bytes(methods: int) -> int:
    """Return the bytes of the report and the comparison of a command."""
    return _SUMMARY + _METHOD_IN_SUMMARY * methods


def _row(images: int, classes: int) -> int:
    """Return the bytes of a row of predictions: five scores and classes of each image, packed."""
    return _ROW + int(images * (10 + 5 * math.log2(1 + classes) / 8))


def decoded_bytes(images: Any) -> int:
    """Return the size of images or features (N, ...) in memory, decoded."""
    return math.prod(images.shape) * images.dtype.itemsize


def bank_bytes(strategy: CLIPStrategy, scenario: Scenario) -> list[int]:
    """Return the bytes that each task adds to the bank.

    Args:
        strategy: whose first selection is made.
        scenario: the stream of tasks.
    """
    tasks = scenario.trained_tasks
    if strategy.learning == "none" or strategy.model.identity is None:
        return [0] * tasks
    values = _values(strategy)
    names = sum(map(len, strategy.selection)) + 80 * len(strategy.selection)
    copies = 2 if _keeps_host(strategy) else 1
    width, sizes, seen = strategy.model.zero_shot_text_features.shape[1], [], set[int]()
    for task in range(tasks):
        classes = scenario.brought[task]
        seen.update(classes)
        size = strategy.head_bytes(sum(scenario.train_samples[: task + 1]), len(seen)) + _ENTRY
        if values:
            statistics = 4 * width * (width + len(classes)) + 16 * len(classes)
            size += copies * (values + names) + statistics + 2 * _HEADER
        sizes.append(size)
    return sizes


def _keeps_host(strategy: CLIPStrategy) -> bool:
    """Return whether the bank has the weights before a merge too."""
    return isinstance(strategy, ContinuedStrategy | MergingStrategy)


def _values(strategy: CLIPStrategy) -> int:
    """Return the bytes of the trained values, which are kept in fp32."""
    return 4 * sum(p.numel() for p in strategy.selection.values())


def _head(strategy: CLIPStrategy, scenario: Scenario) -> int:
    """Return the bytes of a closed-form head after the last task."""
    return strategy.head_bytes(sum(scenario.train_samples), len(scenario.class_names))


def _state(plan: RunPlan, strategy: CLIPStrategy, bank: list[int], scenario: Scenario) -> int:
    return 0 if why_not(plan) or not sum(bank) else _RNG + _head(strategy, scenario)


def _checkpoints(plan: RunPlan, strategy: CLIPStrategy, scenario: Scenario) -> int:
    """Return the size of all files that stand beside each other, at the end of a task.

    These are the last two states and the last one of the task before, each with the optimiser's;
    what each stage of training ended with, in the states after it; and the states before both
    tasks. What a method keeps of its own is not known, but for the weights that merges start from.
    """
    assert plan.recipe is not None
    values, stages = _values(strategy), 2 if isinstance(strategy, ContinuedStrategy) else 1
    snapshot = values * (3 if _keeps_host(strategy) else 1) + _RNG
    of_optimizer = 2 if plan.recipe.optimizer == "adamw" else int(plan.recipe.momentum > 0)
    ends = 3 * stages - 1  # the last but one has not ended its stage
    return (3 + ends + 2) * snapshot + 3 * of_optimizer * values + 2 * _head(strategy, scenario)


def _pictures(images: Any) -> int:
    """Return the bytes of the pictures for reports; photographs hardly get smaller as PNG."""
    if len(images.shape) != 4:
        return 0
    height, width = images.shape[2:]
    scale = min(1.0, _SIDE / max(height, width))
    return int(_PICTURES * 2 * height * width * scale**2)
