"""`run.py --dry-run`: what a command would run and what it takes; nothing is trained or written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from cl_clipfit.commands.bank import file_size
from cl_clipfit.commands.train import distinct_runs
from cl_clipfit.config.command import RunConfig
from cl_clipfit.data.streams import Scenario
from cl_clipfit.evaluation.frozen_features import FrozenImages, with_features
from cl_clipfit.experiment.bank_writer import STATISTICS_IMAGES
from cl_clipfit.experiment.build import build_strategy, select_first
from cl_clipfit.experiment.estimate import GROUNDS, PASSES, encoding_seconds, estimate_seconds
from cl_clipfit.experiment.footprint import (
    Footprint,
    decoded_bytes,
    footprint,
    summary_bytes,
)
from cl_clipfit.experiment.learner import Learner
from cl_clipfit.experiment.prepare import Prepared, prepare
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.report.display import ConsoleDisplay, describe_stream, literal, say
from cl_clipfit.runtime.progress import Progress
from cl_clipfit.storage.manifest import CHECKPOINTS
from cl_clipfit.storage.run_folder import RunFolder
from cl_clipfit.training.strategy import CLIPStrategy

_COMPLETE = "complete: shown again"


@dataclass(frozen=True)
class Cost:
    """What a method takes, with any seed.

    Attributes:
        parameters: numbers that the optimiser changes.
        steps: of the optimiser, over all tasks.
        seconds: of a run, without the features that are encoded once for all; None: unknown.
        encoding: seconds of these features, by what is encoded.
        size: bytes on disk.
    """

    parameters: int
    steps: int
    seconds: float | None
    encoding: dict[str, float | None]
    size: Footprint


def dry_run(config: RunConfig, out: Console, err: Console) -> None:
    """Print every run of a command: what trains, for how long, its folder, state and sizes.

    A few images and prompts are encoded, which the estimate of the time is made from.

    Args:
        config: the command's settings.
        out: where the plan goes.
        err: where progress goes.

    Raises:
        UserError: a name, file or value is wrong, or a strategy cannot be built.
    """
    progress = ConsoleDisplay(err, config.quiet)
    orders = [_plan(one, out, progress) for one in config.by_class_order()]
    if len(orders) > 1:
        to_do = [cost for costs, _ in orders for cost in costs]
        say(out, f"all {len(orders)} class orders: {_totals(to_do, sum(n for _, n in orders))}")


def _plan(config: RunConfig, out: Console, progress: ConsoleDisplay) -> tuple[list[Cost], int]:
    """Print the runs of a command with one class order.

    Returns:
        what each run that is to be done takes, and how many runs there are.
    """
    prepared = prepare(config, progress)
    runs = distinct_runs(prepared, progress)
    scenario = prepared.scenario(runs[0][0].seed)
    scored = "test" if config.validation is None else "validation"
    table = _table(
        "strategy", "seed", "trainable\nparameters", "steps", "folder", "state",
        title=f"{literal(describe_stream(scenario, scored))}\n{literal(prepared.stream.model)} on"
        f" {prepared.stream.compute.device}, {prepared.stream.compute.precision}",
        caption=f"folders in {literal(str(config.output))}; nothing was trained or written",
    )  # fmt: skip
    costs = {plan.label: _cost(plan, prepared, scenario, progress) for plan, _ in runs}
    for plan, folder in runs:
        cost = costs[plan.label]
        numbers = (f"{number:,}" for number in (cost.parameters, cost.steps))
        cells = (plan.label, str(plan.seed), *numbers, folder.path.name, _state(folder))
        table.add_row(*map(literal, cells))
    out.print(table)
    to_do = [plan.label for plan, folder in runs if _state(folder) != _COMPLETE]
    out.print(_costs(costs, to_do))
    taken = [costs[label] for label in to_do]
    say(out, f"in all: {_totals(taken, len(runs))}")
    say(out, _data(scenario, scored))
    return taken, len(runs)


def _table(*titles: str, title: str, caption: str) -> Table:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for name in titles:
        table.add_column(name, overflow="fold")
    return table


def _cost(plan: RunPlan, prepared: Prepared, scenario: Scenario, progress: Progress) -> Cost:
    """Return what a run takes, from the shapes of its strategy and a few encoded images."""
    stream, names = prepared.stream, scenario.class_names
    strategy = build_strategy(plan, stream.compute, prepared.model, names, scenario.templates)
    select_first(plan, strategy, scenario.brought[0])
    learner = Learner(strategy, plan, scenario, stream.settings.online)
    steps = sum(learner.size(task)[1] for task in range(1, scenario.trained_tasks + 1))
    size = footprint(
        plan, strategy, scenario, steps,
        probes=bool(prepared.probes), predictions=stream.keeps_predictions,
    )  # fmt: skip
    encoding, read, probes = dict[str, float | None](), scenario, prepared.probes
    if "image" not in plan.cls.towers:
        train = plan.reads_train_images_as_they_are
        encoding = _encoding(strategy, prepared, scenario, train, progress)
        width = strategy.model.zero_shot_text_features.shape[1]
        read, probes = with_features(scenario, probes, lambda images: _blank(images, width))
        if train:
            read = read.with_images(_blank(scenario.train.images, width), read.test.images)
    statistics = STATISTICS_IMAGES if strategy.selection else 0
    seconds = estimate_seconds(plan, read, strategy, probes, statistics)
    return Cost(strategy.trained_numbers(), steps, seconds, encoding, size)


def _encoding(
    strategy: CLIPStrategy, prepared: Prepared, scenario: Scenario, train: bool, progress: Progress
) -> dict[str, float | None]:
    """Return the seconds of the features that all methods on a frozen tower share, by data set."""
    encoder = FrozenImages(prepared.model, prepared.stream.compute.device, progress)
    sets = {f"probe {name}": probe.test.images for name, probe in prepared.probes.items()}
    sets["test"] = scenario.test.images
    if train:
        sets["training"] = scenario.train.images
    tokens = strategy.class_tokens
    return {
        name: 0.0 if encoder.is_kept(images, tokens) else encoding_seconds(strategy, images)
        for name, images in sets.items()
    }


def _blank(images: Any, width: int) -> torch.Tensor:
    """Return what stands for the features of images, for which reading them is timed."""
    return torch.zeros(1, width).expand(len(images), width)


def _costs(costs: dict[str, Cost], to_do: Sequence[str]) -> Table:
    """Return the table of what a run of each method takes."""
    table = _table(
        "strategy", "runs to do", "time", "bank per task", "bank", "run folder", "checkpoints",
        title="What one run takes",
        caption=f"time: estimated from {GROUNDS} timed here, {PASSES} forward passes for a"
        " training step, without figures and reports; checkpoints: the most at a time, beside the"
        " folder, removed when the run is complete, without what a method keeps from old tasks",
    )  # fmt: skip
    for label, cost in costs.items():
        size = cost.size
        sizes = (max(size.bank), sum(size.bank), size.folder, size.checkpoints)
        shown = (f"about {file_size(count)}" if count else "-" for count in sizes)
        cells = (label, str(to_do.count(label)), _time(cost.seconds), *shown)
        table.add_row(*map(literal, cells))
    return table


def _totals(costs: Sequence[Cost], runs: int) -> str:
    """Return a line on all runs that are to be done; those of a method share their cost."""
    if not costs:
        return f"none of {runs} runs is to be done"
    encoding: dict[str, float | None] = {}
    for cost in costs:
        encoding |= cost.encoding
    seconds = _sum([*(cost.seconds for cost in costs), *encoding.values()])
    shared = f" ({_time(_sum([*encoding.values()]))} for image features that methods share)"
    disk = sum(cost.size.folder for cost in costs) + summary_bytes(len(set(map(id, costs))))
    most = max(cost.size.checkpoints for cost in costs)
    checkpoints = f", and up to {file_size(most)} of checkpoints" if most else ""
    return (
        f"{len(costs)} of {runs} runs to do: {_time(seconds)}{shared if encoding else ''},"
        f" about {file_size(disk)} on disk{checkpoints}"
    )


def _data(scenario: Scenario, scored: str) -> str:
    """Return a line on the size of the images, decoded: all of them, and those of a task."""
    texts, sets = [], {"training": (scenario.train.images, scenario.train_samples),
                       scored: (scenario.test.images, scenario.test_samples)}  # fmt: skip
    for name, (images, counts) in sets.items():
        whole = decoded_bytes(images)
        of_task = [whole * count // max(1, len(images)) for count in counts]
        span = " to ".join(file_size(size) for size in sorted({min(of_task), max(of_task)}))
        texts.append(f"{name} {file_size(whole)} ({span} per task)")
    held = "in memory" if isinstance(scenario.train.images, torch.Tensor) else "decoded at each use"
    return f"decoded data, {held}: {', '.join(texts)}"


def _sum(seconds: Sequence[float | None]) -> float | None:
    known = [value for value in seconds if value is not None]
    return sum(known) if len(known) == len(seconds) else None


def _time(seconds: float | None) -> str:
    """Return a time in the unit that suits it.

    Example:
        >>> [_time(s) for s in (0.4, 75, 500, 40_000, None)]
        ['under 1 s', 'about 75 s', 'about 8 min', 'about 11 h', 'unknown: out of memory']
    """
    if seconds is None:
        return "unknown: out of memory"
    if seconds < 1:
        return "under 1 s"
    units = (3600, "h"), (60, "min"), (1, "s")
    size, unit = next(((size, unit) for size, unit in units if seconds >= 2 * size), units[-1])
    return f"about {seconds / size:.0f} {unit}"


def _state(folder: RunFolder) -> str:
    """Return what the command would do with a run."""
    if folder.finished_result() is not None:
        return _COMPLETE
    return "resumed" if (folder.path / CHECKPOINTS).is_dir() else "new"
