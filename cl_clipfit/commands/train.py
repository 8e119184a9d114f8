"""One command: every strategy and seed it names, then the table and the comparison."""

import contextlib
import gc
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from cl_clipfit.commands.resume import check_output, resumed_folder
from cl_clipfit.config.command import RunConfig
from cl_clipfit.errors import UserError
from cl_clipfit.evaluation.frozen_features import FrozenImages
from cl_clipfit.experiment.build import check_strategy
from cl_clipfit.experiment.identity import config_of
from cl_clipfit.experiment.prepare import prepare
from cl_clipfit.experiment.run import Run
from cl_clipfit.report.display import ConsoleDisplay, say
from cl_clipfit.report.figures import plot_changes, plot_comparison, plot_run
from cl_clipfit.report.tables import comparison_csv, results_table
from cl_clipfit.runtime.determinism import deterministic
from cl_clipfit.runtime.signals import Stopped
from cl_clipfit.storage.files import write_atomic
from cl_clipfit.storage.lock import hold
from cl_clipfit.storage.run_folder import CONFIG

SAME_COMMAND = "the same command goes on with it"
ALL_RUNS = "the same command{} goes on with all runs"


def run_command(config: RunConfig, out: Console, err: Console) -> list[dict[str, Any]]:
    """Execute a command and return the results, complete runs included.

    Args:
        config: the command's settings.
        out: where results go.
        err: where progress goes.

    Raises:
        UserError: anything wrong with names, files or values, before anything is trained.
    """
    try:
        with deterministic(config.deterministic):
            return _run(config, out, ConsoleDisplay(err, config.quiet))
    except Stopped as stopped:
        stopped.advice = stopped.advice or SAME_COMMAND
        raise


def _run(config: RunConfig, out: Console, display: ConsoleDisplay) -> list[dict[str, Any]]:
    check_output(config.output)
    prepared = prepare(config, display)
    stream, plans = prepared.stream, prepared.plans
    if config.resume is not None and len(plans) > 1:
        raise UserError(
            f"--resume {config.resume}: it holds one run, the command names {len(plans)}: leave out"
            " --strategy and --seed"
        )
    draws = {0 if stream.shots is None else plan.seed for plan in plans}
    scenarios = {draw: prepared.scenario(draw) for draw in draws}
    if len(plans) > 1:  # a single run finds it out itself, without a second copy of the model
        some = next(iter(scenarios.values()))
        for plan in {plan.label: plan for plan in plans}.values():
            check_strategy(plan, stream, prepared.model, some)
    encoder = FrozenImages(prepared.model, stream.device, display)
    results, folders = [], []
    for plan in plans:
        folder = prepared.folder(plan)
        if config.resume is not None:
            own = config_of(stream, plan, config)
            folder = resumed_folder(folder, config.resume, own, config.force_resume)
        folder.check_links()
        with _removed_if_empty(folder.path), hold(folder.path):
            result = None if config.fresh else folder.finished_result()
            if result is None:
                scenario = scenarios[0 if stream.shots is None else plan.seed]
                run = Run(
                    stream, plan, scenario, prepared.model, prepared.probes, folder, display,
                    encoder,
                )  # fmt: skip
                try:
                    result = execute(run, config_of(stream, plan, config), display, config.fresh)
                except Stopped as stopped:
                    if len(plans) > 1:
                        stopped.advice = "; ".join(
                            filter(None, (stopped.advice, ALL_RUNS.format(_but_fresh(config))))
                        )
                    raise
                del run
                gc.collect()
            else:
                folder.checkpoints(display.warn).clear()  # if it was killed while it did that
                display.note(f"{folder.path.name}: complete, shown again (--fresh repeats it)")
        results.append({**result, "label": plan.label})
        folders.append(folder.path)
    _report(results, folders, config.output / f"{stream.entry.name}-comparison", out)
    return results


def _but_fresh(config: RunConfig) -> str:
    return " without --fresh" if config.fresh else ""  # which would begin all of them again


@contextlib.contextmanager
def _removed_if_empty(folder: Path) -> Iterator[None]:
    """Leave no folder of a run that failed before it wrote anything."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # which removes empty ones alone


def execute(
    run: Run, config: dict[str, Any], display: ConsoleDisplay, fresh: bool = False
) -> dict[str, Any]:
    """Execute a run, or go on with it, draw its figures and complete its folder."""
    display.start_run(f"{run.plan.label} seed {run.plan.seed}")
    run.folder.sweep()
    if fresh:
        run.folder.checkpoints(display.warn).clear()
    try:
        result = run.execute(config)
        display.stop()
        run.folder.require()
        plot_run(result, run.folder.path / "curves")
        plot_changes(result, run.folder.path / "what_moved")
        run.folder.save_result(result)  # it makes the run complete
    except Stopped as stopped:
        if run.journal is not None and (run.folder.path / CONFIG).is_file():
            words = ["run.py", "--resume", str(run.folder.path)]
            words += ["--force-resume"] if run.folder.changed else []
            words += ["--plugin", *config["plugin"]] if config["plugin"] else []
            stopped.advice = f"{shlex.join(words)} goes on with it"
        raise
    finally:
        display.stop()
    run.folder.checkpoints(display.warn).clear()
    return result


def _report(results: list[dict[str, Any]], folders: list[Path], path: Path, out: Console) -> None:
    plot_comparison(results, path)
    csv_file = path.with_name(f"{path.name}.csv")
    write_atomic(csv_file, comparison_csv(results, [folder.name for folder in folders]))
    out.print(results_table(results))
    for folder in folders:
        say(out, f"run folder: {folder}")
    figure = path.with_name(f"{path.name}.png")  # none of results without a number
    say(out, f"comparison: {figure if figure.exists() else csv_file}")
