"""One run: scenario x strategy x seed -> a run folder with tables, metrics and curves."""

import copy
import random
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from cl_clipfit import environment, metrics
from cl_clipfit.clip import CLIPClassifier
from cl_clipfit.data.source import Source
from cl_clipfit.data.streams import Scenario
from cl_clipfit.errors import UserError
from cl_clipfit.estimate import estimate_seconds
from cl_clipfit.metrics.tables import AccuracyTables, accuracy, seen_curve
from cl_clipfit.optimization import steps_per_epoch
from cl_clipfit.plan import RunPlan, StreamPlan
from cl_clipfit.results import Progress, build_result
from cl_clipfit.runs import RunFolder
from cl_clipfit.strategy import CLIPStrategy, StepCallback
from cl_clipfit.tuning.deltas import change_by_layer

LONG_RUN_SECONDS = 120


class Display(Protocol):
    """What a run tells while it goes on; see `report.display`."""

    def note(self, text: str) -> None:
        """Say one line."""

    def warn(self, text: str) -> None:
        """Say one line that matters."""

    def start_task(self, task: int, tasks: int, epochs: int, steps: int) -> None:
        """Begin a task (1-based) of `steps` optimiser steps."""

    def step(self, strategy: CLIPStrategy) -> None:
        """Follow one optimiser step."""

    def end_task(self, task: int, tasks: int, accuracy: float | None, seconds: float) -> None:
        """End a task: accuracy over all classes seen in percent, seconds of training."""


def build_strategy(
    plan: RunPlan,
    stream: StreamPlan,
    model: CLIPClassifier,
    class_names: Sequence[str],
    templates: Sequence[str],
    plugins: Sequence[Any] = (),
) -> CLIPStrategy:
    """Build a plan's strategy on a copy of the model.

    Args:
        plan: the strategy, its recipe and options.
        stream: names the device.
        model: the pretrained classifier.
        class_names: names in label order.
        templates: prompt templates of the classes.
        plugins: Avalanche plugins.

    Raises:
        UserError: the method's own code fails.
    """
    try:
        return plan.cls(
            model=copy.deepcopy(model),
            class_names=class_names,
            templates=templates,
            recipe=plan.recipe,
            options=plan.options,
            device=stream.device,
            plugins=list(plugins),
        )
    except UserError:
        raise
    except Exception as error:  # a method's own code may raise anything
        raise UserError(failure(plan, error)) from error


def check_strategy(
    plan: RunPlan, stream: StreamPlan, model: CLIPClassifier, scenario: Scenario
) -> None:
    """Find what is wrong with a selection before other runs of the command have cost their time.

    Args:
        plan: the run.
        stream: what all runs of the command share.
        model: the pretrained classifier; it is copied.
        scenario: the stream; only the names of its first task are encoded.

    Raises:
        UserError: the strategy cannot be built, or selects nothing.
    """
    first = scenario.task_classes[0]
    names = scenario.class_names[: len(first)]
    select_first(plan, build_strategy(plan, stream, model, names, scenario.templates), first)


def select_first(plan: RunPlan, strategy: CLIPStrategy, classes: Sequence[int]) -> None:
    """Select what trains in the first task, whose `classes` these are.

    Raises:
        UserError: the selection fails.
    """
    if plan.recipe is None:
        return
    strategy.task_classes, strategy.seen_classes = list(classes), list(classes)
    try:
        strategy.select()
    except Exception as error:
        raise UserError(failure(plan, error)) from error
    strategy.task_classes, strategy.seen_classes = [], []


def failure(plan: RunPlan, error: Exception, task: int = 0) -> str:
    """Say what failed in a line, and where in the method's own file; task 0 is before any."""
    name, file = plan.strategy.name, plan.strategy.file
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if Path(f.filename).resolve() == file.resolve()]
    where = f" ({file.name}, line {lines[-1]})" if lines else ""
    when = f"in task {task}" if task else "before the first task"
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return f"strategy {name} failed {when}{where}: {kind}{error}"


def seed_everything(seed: int) -> None:
    """Seed every generator a method or plug-in may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class Run:
    """Train one strategy on a stream and write its folder.

    Args:
        stream: what all runs of the command share.
        plan: the strategy and its seed.
        scenario: the stream of tasks.
        model: the pretrained classifier, without classes; it is copied, not changed.
        probes: data sets scored zero-shot after every task.
        folder: where the results go.
        display: told about progress.
    """

    def __init__(
        self,
        stream: StreamPlan,
        plan: RunPlan,
        scenario: Scenario,
        model: CLIPClassifier,
        probes: Mapping[str, Source],
        folder: RunFolder,
        display: Display,
    ) -> None:
        self.stream, self.plan, self.scenario = stream, plan, scenario
        self.probes, self.folder, self.display = probes, folder, display
        self.task = 0  # being learned; 0 before any
        self._warned = 0
        seed_everything(plan.seed)
        self.strategy = build_strategy(
            plan, stream, model, scenario.class_names, scenario.templates,
            plugins=[StepCallback(display.step)],
        )  # fmt: skip
        self.progress = Progress(
            AccuracyTables(scenario.test_samples), {name: [] for name in probes}
        )

    def execute(self, config: dict[str, Any]) -> dict[str, Any]:
        """Run all tasks and return the content of `result.json`, which the caller saves.

        Raises:
            UserError: the strategy's code fails, the model diverges, or the folder cannot be
                written. The environment variable CL_CLIPFIT_DEBUG=1 shows the traceback.
        """
        environment.reset_peak_memory(self.stream.device)
        select_first(self.plan, self.strategy, self.scenario.task_classes[0])
        self._show_warnings()
        self.folder.begin(config)
        try:
            self._run_stream()
        except UserError:
            raise
        except Exception as error:
            raise UserError(failure(self.plan, error, self.task)) from error
        return build_result(self.stream, self.plan, self.scenario, self.strategy, self.progress)

    def _run_stream(self) -> None:
        self._announce()
        self._evaluate()
        tasks = len(self.scenario.task_classes)
        for task, experience in enumerate(self.scenario.benchmark.train_stream, 1):
            self.task = task
            started = time.perf_counter()
            self._start_display(task, tasks)
            self.strategy.train(experience, eval_streams=[])
            seconds = time.perf_counter() - started
            self.progress.train_seconds.append(seconds)
            self._keep_task(task)
            self._evaluate()
            seen = metrics.functional.seen_accuracy(
                self.progress.tables.seen, self.scenario.test_samples, task
            )
            self.display.end_task(task, tasks, seen, seconds)

    def _keep_task(self, task: int) -> None:
        """Put what the task trained into the bank, and note how far it moved."""
        strategy = self.strategy
        self.folder.save_task(task, strategy.selection)
        anchors = strategy.model.pretrained_values
        self.progress.changes.append(change_by_layer(strategy.selection, anchors))
        self._show_warnings()

    def _show_warnings(self) -> None:
        """Show the strategy's new warnings; all of them go into the result."""
        for text in self.strategy.warnings[self._warned :]:
            self.display.warn(text)
        self._warned = len(self.strategy.warnings)

    def _start_display(self, task: int, tasks: int) -> None:
        if self.plan.recipe is None:
            self.display.start_task(task, tasks, 0, 0)
            return
        recipe = self.plan.recipe
        steps = steps_per_epoch(recipe, self.scenario.train_samples[task - 1])
        self.display.start_task(task, tasks, recipe.epochs, recipe.epochs * steps)

    def _evaluate(self) -> None:
        """Fill one row of every table from one pass over the test images."""
        started = time.perf_counter()
        tables, probes = self.progress.tables, self.progress.probes
        test = self.scenario.test
        if not (self.strategy.frozen and tables.seen):
            self._scores = self.strategy.score_all(test.images)
            self._probe_row = {name: self._probe(source) for name, source in self.probes.items()}
        task_classes = self.scenario.task_classes
        if not tables.seen:
            self.progress.zero_shot = seen_curve(self._scores, test.labels, task_classes)
        tables.append(self._scores, test.labels, task_classes)
        for name, value in self._probe_row.items():
            probes[name].append(value)
        self.progress.eval_seconds.append(time.perf_counter() - started)

    def _probe(self, source: Source) -> float:
        scores = self.strategy.score_probe(source.test.images, source.class_names, source.templates)
        return accuracy(scores, source.test.labels)

    def _announce(self) -> None:
        """Say how long the run will take and how much it will write, where that is much."""
        name, where = self.plan.strategy.name, self.stream.device
        seconds = estimate_seconds(self.plan, self.scenario, self.strategy, self.probes)
        if seconds > LONG_RUN_SECONDS:
            self.display.note(
                f"{name}: about {seconds / 60:.0f} minutes on {where}, estimated from a few images"
                " and prompts"
            )
        values = sum(p.numel() for p in self.strategy.selection.values())
        gigabytes = 4 * values * len(self.scenario.task_classes) / 1e9
        if gigabytes > 1:
            self.display.note(f"{name}: its bank will take about {gigabytes:.1f} GB")
