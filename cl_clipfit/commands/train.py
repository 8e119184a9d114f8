"""Execute a command: run every strategy with every seed, then print and draw the comparison."""

import contextlib
import gc
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from cl_clipfit.commands import summary
from cl_clipfit.commands.resume import check_output, resumed_folder
from cl_clipfit.config.command import RunConfig
from cl_clipfit.data.streams import Scenario
from cl_clipfit.errors import UserError, program
from cl_clipfit.evaluation.frozen_features import FrozenImages
from cl_clipfit.experiment.build import check_strategy
from cl_clipfit.experiment.identity import code_has_changed, config_of
from cl_clipfit.experiment.prepare import Prepared, prepare
from cl_clipfit.experiment.run import Run
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.report.display import (
    ConsoleDisplay,
    describe_stream,
    drawing,
    say,
    tolerating,
)
from cl_clipfit.report.logs import log_again, open_logs
from cl_clipfit.report.results import Results
from cl_clipfit.runtime import launch, processes
from cl_clipfit.runtime.determinism import deterministic
from cl_clipfit.runtime.progress import Progress
from cl_clipfit.runtime.signals import Stopped
from cl_clipfit.storage.lock import hold
from cl_clipfit.storage.predictions import read_predictions
from cl_clipfit.storage.result import Result
from cl_clipfit.storage.run_folder import (
    CONFIG,
    RunFolder,
    stream_name,
)

SAME_COMMAND = "the same command resumes it"
ALL_RUNS = "the same command{} resumes all runs"


def run_command(config: RunConfig, out: Console, err: Console) -> Results:
    """Execute a command, then print its table and the paths of its results.

    Args:
        config: the command's settings.
        out: where results go.
        err: where progress goes.

    Raises:
        UserError: a name, file or value is wrong; raised before anything is trained.
    """
    shows = launch.declared().rank == 0
    results = run(config, ConsoleDisplay(err, config.quiet) if shows else None)
    if not shows:
        return results
    out.print(results.table())
    for result in results:
        say(out, f"run folder: {result.path}")
    for line in summary.written(config, results):
        say(out, line)
    return results


def run(config: RunConfig, progress: Progress | None = None) -> Results:
    """Run every strategy with every seed of a command; nothing is printed.

    As on the command line, complete runs are not repeated and unfinished ones are resumed. The
    folders of the runs and their comparison are written to `config.output`.

    Args:
        config: what to run.
        progress: receives progress, notes and warnings; default none.

    Returns:
        a result for each run, strategies first; `Results` shows them as a table, a data frame or
        a figure.

    Raises:
        UserError: a name, file or value is wrong; raised before anything is trained.

    Example:
        >>> from cl_clipfit import RunConfig, run
        >>> config = RunConfig(strategy=["clipfit"], tasks=5, lr=1e-3)
        >>> results = run(config)  # doctest: +SKIP
        >>> results[0].metrics["average_accuracy"]  # doctest: +SKIP
    """
    progress = progress or Progress()
    try:
        with processes.joined(config.device):
            if launch.restarted():  # by torchrun: to resume, not to start over once more
                config = config.model_copy(update={"fresh": False})
            results = run_each(config, progress)
            if launch.writes():
                summary.compare(config, results, progress)
                page = summary.report_file(config, results)
                summary.write_report(page, [results], progress)
            return results
    except Stopped as stopped:
        stopped.advice = stopped.advice or SAME_COMMAND
        raise


def run_each(config: RunConfig, progress: Progress) -> Results:
    """Run every strategy with every seed of a command, and do not compare them; see `run`."""
    with deterministic(config.deterministic), _imports_set_aside():
        orders = config.by_class_order()
        if config.resume is not None and len(orders) > 1:
            raise UserError(f"--class-order: the run in {config.resume} has a single one")
        return Results(result for one in orders for result in _run_all(one, progress))


@contextlib.contextmanager
def _imports_set_aside() -> Iterator[None]:
    """Leave what was imported so far out of the collection after every run, nearly all it sees."""
    if gc.get_freeze_count():  # by the caller: not ours to undo
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _run_all(config: RunConfig, progress: Progress) -> list[Result]:
    check_output(config.output)
    with processes.first_on_machine():
        prepared = prepare(config, progress)
    stream, plans = prepared.stream, prepared.plans
    if config.resume is not None and len(plans) > 1:
        raise UserError(
            f"--resume {config.resume}: it holds one run, the command names {len(plans)}: leave out"
            " --strategy and --seed"
        )
    shots_seeds = {stream.shots_seed(plan.seed) for plan in plans}
    scenarios = {seed: prepared.scenario(seed) for seed in shots_seeds}
    scored = "test" if config.validation is None else "validation"
    progress.note(describe_stream(next(iter(scenarios.values())), scored))
    if len(plans) > 1:  # a single run fails early anyway, without a second copy of the model
        scenario = next(iter(scenarios.values()))
        for plan in {plan.label: plan for plan in plans}.values():
            check_strategy(plan, stream.compute, prepared.model, scenario)
    encoder = FrozenImages(prepared.model, stream.compute.device, progress)
    results = []
    for plan, folder in distinct_runs(prepared, progress):
        if config.resume is not None:
            settings = config_of(stream, plan, prepared.command)
            folder = resumed_folder(folder, config.resume, settings, config.force_resume)
        folder.check_links()
        with _held(folder):
            content = None if config.fresh else processes.from_first(folder.finished_result)
            if content is None:
                scenario = scenarios[stream.shots_seed(plan.seed)]
                content = _run_one(prepared, plan, scenario, folder, progress, encoder)
                gc.collect()
            else:
                _clear(folder, progress)  # left if it was killed while clearing
                progress.note(f"{folder.path.name}: complete, shown again (--fresh repeats it)")
                if folder.writes:
                    log_again(config.log, folder.path, config_of(stream, plan, prepared.command))
                if code_has_changed(content):
                    progress.warn(f"{folder.path.name} was made by other code of cl_clipfit")
        # The run is shown under the names that this command uses.
        data = content["data"] | {k: v for k, v in prepared.source.origin.items() if k == "name"}
        results.append(Result(folder.path, {**content, "label": plan.label, "data": data}))
    return results


def distinct_runs(prepared: Prepared, progress: Progress) -> list[tuple[RunPlan, RunFolder]]:
    """Return the runs of a command and their folders; a run that has two labels comes once."""
    runs: dict[str, tuple[RunPlan, RunFolder]] = {}
    for plan in prepared.plans:
        folder = prepared.folder(plan)
        label = runs.setdefault(folder.digest, (plan, folder))[0].label
        if label != plan.label and plan.seed == prepared.plans[0].seed:  # once for all seeds
            progress.note(f"{plan.label} is the same run as {label}: shown once, as {label}")
    return list(runs.values())


def _run_one(
    prepared: Prepared, plan: RunPlan, scenario: Scenario, folder: RunFolder, progress: Progress,
    encoder: FrozenImages,
) -> dict[str, Any]:  # fmt: skip
    """Train one run, in a folder that this process holds."""
    stream, config = prepared.stream, prepared.command.config
    run = Run(stream, plan, scenario, prepared.model, prepared.probes, folder, progress, encoder)
    settings = config_of(stream, plan, prepared.command)
    kinds = config.log if folder.writes else []
    try:
        with open_logs(kinds, config.output, folder.path.name, settings) as logs:
            run.history.listeners += [log.write for log in logs]
            return execute(run, settings, progress, config.fresh)
    except Stopped as stopped:
        if len(prepared.plans) > 1:
            # with --fresh, all of them would start over
            but_fresh = " without --fresh" if config.fresh else ""
            advice = filter(None, (stopped.advice, ALL_RUNS.format(but_fresh)))
            stopped.advice = "; ".join(advice)
        raise


@contextlib.contextmanager
def _held(folder: RunFolder) -> Iterator[None]:
    """Hold a run's folder, unless another process of the command writes it."""
    if not folder.writes:
        yield
        return
    with _removed_if_empty(folder.path), hold(folder.path):
        yield


@contextlib.contextmanager
def _removed_if_empty(folder: Path) -> Iterator[None]:
    """Remove the folder of a run that failed before it wrote anything."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # removes only an empty folder


def execute(
    run: Run, config: dict[str, Any], progress: Progress, fresh: bool = False
) -> dict[str, Any]:
    """Execute or resume a run, draw its figures and complete its folder.

    Args:
        run: the run; this process holds its folder.
        config: content of its `config.yaml`.
        progress: receives progress, notes and warnings.
        fresh: start over, ignoring saved checkpoints.
    """
    from cl_clipfit.report.figures import plot_changes, plot_run

    stream = stream_name(run.scenario.name, run.scenario.origin)
    progress.start_run(f"{run.plan.label} seed {run.plan.seed}", stream)
    run.folder.sweep()
    if fresh:
        _clear(run.folder, progress)
    try:
        result = run.execute(config)
        progress.stop()
        run.folder.require()
        if run.folder.writes:
            for name, plot in (("curves", plot_run), ("what_moved", plot_changes)):
                with drawing(run.folder.path / name, progress.warn):
                    plot(result, run.folder.path / name)
            _save_thumbnails(run, progress)
        content = run.folder.save_result(result)  # completes the run
    except Stopped as stopped:
        if run.journal is not None and (run.folder.path / CONFIG).is_file():
            words = ["--resume", str(run.folder.path)]
            words += ["--force-resume"] if run.folder.changed else []
            words += ["--plugin", *config["plugin"]] if config["plugin"] else []
            stopped.advice = f"{program()} {shlex.join(words)} resumes it"
        raise
    finally:
        progress.stop()
    _clear(run.folder, progress)
    return content


def _save_thumbnails(run: Run, progress: Progress) -> None:
    """Keep pictures of a few test images for reports."""
    from cl_clipfit.report.html import thumbnails

    with tolerating("the thumbnails of test images are", progress.warn):
        rows = read_predictions(run.folder.path)
        thumbnails.save_thumbnails(run.test_images, rows, run.folder.path)


def _clear(folder: RunFolder, progress: Progress) -> None:
    """Remove the checkpoints of a run."""
    if folder.writes:
        folder.checkpoints(progress.warn).clear()
