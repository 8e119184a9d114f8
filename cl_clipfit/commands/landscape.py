"""`run.py landscape`: loss and accuracy between the solutions of one task of a finished run."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cl_clipfit.errors import UserError, is_file
from cl_clipfit.evaluation.landscape import (
    LINES,
    POINTS,
    Sample,
    Values,
    encode_shared,
    loss_and_accuracy,
    plane_landscape,
    profiles,
)
from cl_clipfit.experiment.build import failure
from cl_clipfit.experiment.reopen import FinishedRun, open_run
from cl_clipfit.experiment.run import LONG_RUN_SECONDS
from cl_clipfit.merging import plane
from cl_clipfit.report.display import ConsoleDisplay, drawing, remove_figure, say
from cl_clipfit.report.landscape import lines_table, plot_lines, plot_plane
from cl_clipfit.runtime.determinism import exact_fp32
from cl_clipfit.storage.files import write_json
from cl_clipfit.storage.manifest import adding

PLANE_IMAGES = 256
Samples = dict[str, Sample]


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        path: folder of a finished run.
        task: counted from 1; default the last.
        images: maximum number of training images, and of test images.
        plane: also measure the plane through three solutions.
        device: where to compute; default where the run was trained.
    """

    path: Path
    task: int | None = None
    images: int = 512
    plane: bool = True
    device: str | None = None


@exact_fp32()
def landscape_command(request: Request, out: Console, err: Console) -> dict[str, Any]:
    """Measure, write `landscape-task-NNN` and `plane-task-NNN` into the run folder, and report.

    Args:
        request: what to measure.
        out: where results go.
        err: where progress goes.

    Returns:
        the content of `landscape-task-NNN.json`.

    Raises:
        UserError: there is no finished run, it trains nothing, there is no such task, or the
            method's own code fails.
    """
    if request.images < 1:
        raise UserError(f"--images {request.images}: measure on at least one image")
    display = ConsoleDisplay(err)
    run = open_run(request.path, display, request.device)
    tasks = len(run.bank)
    task = tasks if request.task is None else request.task
    if not 1 <= task <= tasks:
        raise UserError(f"--task {task}: the run in {run.path} has tasks 1 to {tasks}")
    run.at_task(task)
    try:
        measurement = _measure(run, task, request, display, out)
    except UserError:
        raise
    except Exception as error:  # a method's own code may raise anything
        raise UserError(failure(run.plan, error, task)) from error
    _write(run, task, measurement, display, out)
    return measurement


def solutions(run: FinishedRun, task: int) -> dict[str, Values]:
    """Return the solutions that a task's landscape lies between, by name, on the device.

    They are "zero-shot", "previous" (after the previous task; zero-shot in task 1) and "host", and
    "merged" if the method continued a host.
    """
    bank, device = run.bank, run.strategy.device
    zero_shot: Values = run.strategy.zero_shot_point()
    points = {"zero-shot": zero_shot, "previous": bank.load(task - 1) if task > 1 else zero_shot}
    if "host" in bank.index["tasks"][task - 1]["files"]:
        points |= {"host": bank.load(task, "host"), "merged": bank.load(task)}
    else:
        points["host"] = bank.load(task)
    return {
        name: {n: value.to(device) for n, value in values.items()}
        for name, values in points.items()
    }


def take_samples(run: FinishedRun, task: int, count: int) -> Samples:
    """Draw at most `count` images of each kind; a smaller draw is a subset of a larger one.

    "train" holds training images of the task, with the classes that its training loss ranks; "test"
    holds test images of all classes seen, with these classes.
    """
    strategy, test = run.strategy, run.scenario.test
    experience = run.scenario.of_task(task - 1)
    images, labels = strategy.task_sample(count, experience)
    seen = list(strategy.seen_classes)
    candidates = (run.scenario.test_tasks < task).nonzero().flatten()
    draws = torch.Generator().manual_seed(0)
    chosen = candidates[torch.randperm(len(candidates), generator=draws)[:count].sort().values]
    device = strategy.device
    samples = {
        "train": Sample(images, labels, list(strategy.label_space())),
        "test": Sample(test.images[chosen].to(device), test.labels[chosen].to(device), seen),
    }
    return {n: encode_shared(strategy, strategy.selection, s) for n, s in samples.items()}


def _measure(
    run: FinishedRun, task: int, request: Request, display: ConsoleDisplay, out: Console
) -> dict[str, Any]:
    points = solutions(run, task)
    samples = take_samples(run, task, request.images)
    surface = None
    if request.plane:
        try:
            surface = plane(*(points[name] for name in _corners(points)))
        except ValueError as error:  # the solutions coincide or are collinear
            out.print(str(error), highlight=False, markup=False)
    few = take_samples(run, task, min(request.images, PLANE_IMAGES)) if surface else {}
    _announce(run, points, [samples, few], display)
    measurement: dict[str, Any] = {
        "task": task,
        "images": {name: len(sample.labels) for name, sample in samples.items()},
        "classes": {name: len(sample.classes) for name, sample in samples.items()},
        "lines": {name: profiles(run.strategy, points, s) for name, s in samples.items()},
        "plane": None,
    }
    if surface:
        if task == 1:
            del points["previous"]  # zero-shot under another name
        measurement["plane"] = {
            "images": {name: len(sample.labels) for name, sample in few.items()},
            "spanned_by": _corners(points),
            **plane_landscape(run.strategy, surface, points, few),
        }
    return measurement


def _corners(points: Mapping[str, Values]) -> list[str]:
    """Return the names of the solutions that span the plane."""
    return ["zero-shot", "host", "merged" if "merged" in points else "previous"]


def _announce(
    run: FinishedRun,
    points: Mapping[str, Values],
    samples: list[Samples],
    display: ConsoleDisplay,
) -> None:
    """Report an estimate of the duration if it is long."""
    lines = sum(a in points and b in points for a, b in LINES)
    calls = [len(points) + lines * (POINTS - 2), POINTS**2]
    seconds = 0.0
    for count, group in zip(calls, samples, strict=True):
        for sample in group.values():
            spent = [_seconds(run, points["host"], sample) for _ in range(2)]
            seconds += count * min(spent)  # the first call includes set-up
    if seconds > LONG_RUN_SECONDS:
        display.note(f"estimated {seconds / 60:.0f} minutes")


def _seconds(run: FinishedRun, values: Values, sample: Sample) -> float:
    started = time.perf_counter()
    loss_and_accuracy(run.strategy, values, sample)
    return time.perf_counter() - started


def _write(
    run: FinishedRun, task: int, measurement: dict[str, Any], display: ConsoleDisplay, out: Console
) -> None:
    lines = run.path / f"landscape-task-{task:03d}"
    surface = run.path / f"plane-task-{task:03d}"
    with adding(run.path):
        with drawing(lines, display.warn):
            plot_lines(measurement, run.result, lines)
        with drawing(surface, display.warn):
            if measurement["plane"]:
                plot_plane(measurement, run.result, surface)
            else:
                remove_figure(surface)
        write_json(lines.with_name(f"{lines.name}.json"), measurement)
    out.print(lines_table(measurement, run.result))
    for figure in (f"{path}.png" for path in (lines, surface)):
        if is_file(figure):
            say(out, f"figure: {figure}")
    say(out, f"numbers: {lines}.json")
