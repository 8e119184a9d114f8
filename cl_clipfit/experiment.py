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
from cl_clipfit.metrics.tables import AccuracyTables, accuracy, seen_curve
from cl_clipfit.plan import RunPlan, StreamPlan
from cl_clipfit.results import Progress, build_result
from cl_clipfit.runs import RunFolder
from cl_clipfit.strategy import CLIPStrategy, StepCallback
from cl_clipfit.tuning.deltas import change_by_layer

LONG_RUN_SECONDS = 120
_TIMED_IMAGES = 32


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
    except Exception as error:  # a method's own code may raise anything
        raise UserError(failure(plan, error)) from error


def check_strategy(plan: RunPlan, stream: StreamPlan, model: CLIPClassifier) -> None:
    """Find what is wrong with a selection before other runs of the command have cost their time.

    Raises:
        UserError: the strategy cannot be built, or selects nothing.
    """
    if plan.recipe is None:
        return
    strategy = build_strategy(plan, stream, model, ["a class"], ["{}"])
    try:
        strategy.select()
    except Exception as error:
        raise UserError(failure(plan, error)) from error


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
        for text in strategy.warnings[self._warned :]:
            self.display.warn(text)
        self._warned = len(strategy.warnings)

    def _start_display(self, task: int, tasks: int) -> None:
        if self.plan.recipe is None:
            self.display.start_task(task, tasks, 0, 0)
            return
        recipe = self.plan.recipe
        batches = -(-self.scenario.train_samples[task - 1] // recipe.batch_size)
        self.display.start_task(task, tasks, recipe.epochs, recipe.epochs * batches)

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
        """Say how long the run will take, where that is long."""
        seconds = self.estimate_seconds()
        if seconds > LONG_RUN_SECONDS:
            where = self.stream.device
            self.display.note(
                f"{self.plan.strategy.name}: about {seconds / 60:.0f} minutes on {where},"
                f" estimated from {_TIMED_IMAGES} images"
            )

    def estimate_seconds(self) -> float:
        """Estimate the run's length from one timed batch; training costs 3 forward passes."""
        images = self.scenario.test.images[:_TIMED_IMAGES].to(self.stream.device)
        with torch.no_grad():
            self.strategy.model.image_features(images[:8])  # the first call pays for set-up
            started = time.perf_counter()
            self.strategy.model.image_features(images).cpu()
        per_image = (time.perf_counter() - started) / len(images)
        passes = 1 if self.strategy.frozen else len(self.scenario.task_classes) + 1
        tested = len(self.scenario.test) + sum(len(s.test) for s in self.probes.values())
        epochs = self.plan.recipe.epochs if self.plan.recipe else 0
        return per_image * (passes * tested + 3 * epochs * sum(self.scenario.train_samples))
