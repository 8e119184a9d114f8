"""One command: every strategy and seed it names, then the table and the comparison."""

import gc
from pathlib import Path
from typing import Any

from rich.console import Console

from cl_clipfit.building import check_strategy
from cl_clipfit.config import RunConfig
from cl_clipfit.encoding import FrozenImages
from cl_clipfit.experiment import Run
from cl_clipfit.files import write_atomic
from cl_clipfit.preparation import prepare
from cl_clipfit.report.display import ConsoleDisplay
from cl_clipfit.report.figures import plot_changes, plot_comparison, plot_run
from cl_clipfit.report.tables import comparison_csv, results_table
from cl_clipfit.runplan import config_of


def run_command(config: RunConfig, out: Console, err: Console) -> list[dict[str, Any]]:
    """Execute a command and return the results, complete runs included.

    Args:
        config: the command's settings.
        out: where results go.
        err: where progress goes.

    Raises:
        UserError: anything wrong with names, files or values, before anything is trained.
    """
    display = ConsoleDisplay(err, config.quiet)
    prepared = prepare(config, display)
    stream, plans = prepared.stream, prepared.plans
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
        result = None if config.fresh else folder.finished_result()
        if result is None:
            scenario = scenarios[0 if stream.shots is None else plan.seed]
            run = Run(
                stream, plan, scenario, prepared.model, prepared.probes, folder, display, encoder
            )  # fmt: skip
            result = execute(run, config_of(stream, plan, config), display)
            del run
            gc.collect()
        else:
            display.note(f"{folder.path.name}: complete, shown again (--fresh repeats it)")
        results.append({**result, "label": plan.label})
        folders.append(folder.path)
    _report(results, folders, config.output / f"{stream.entry.name}-comparison", out)
    return results


def execute(run: Run, config: dict[str, Any], display: ConsoleDisplay) -> dict[str, Any]:
    """Execute a run, draw its figures and complete its folder."""
    display.start_run(f"{run.plan.label} seed {run.plan.seed}")
    try:
        result = run.execute(config)
    finally:
        display.stop()
    plot_run(result, run.folder.path / "curves")
    plot_changes(result, run.folder.path / "what_moved")
    run.folder.save_result(result)  # last: it makes the run complete
    return result


def _report(results: list[dict[str, Any]], folders: list[Path], path: Path, out: Console) -> None:
    plot_comparison(results, path)
    csv_file = path.with_name(f"{path.name}.csv")
    write_atomic(csv_file, comparison_csv(results, [folder.name for folder in folders]))
    out.print(results_table(results))
    for folder in folders:
        out.print(f"run folder: {folder}", highlight=False, markup=False, soft_wrap=True)
    out.print(f"comparison: {path}.png", highlight=False, markup=False, soft_wrap=True)
