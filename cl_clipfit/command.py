"""One command: every strategy and seed it names, then the table and the comparison."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from cl_clipfit.clip import check_model, create_classifier
from cl_clipfit.config import RunConfig
from cl_clipfit.data.source import DataRequest, Source
from cl_clipfit.data.streams import Scenario, build_scenario
from cl_clipfit.environment import use_exact_fp32
from cl_clipfit.errors import UserError
from cl_clipfit.experiment import Run, check_strategy
from cl_clipfit.plan import (
    RunPlan,
    StreamPlan,
    config_of,
    load_source,
    plan_runs,
    plan_stream,
    run_digest,
    split_label,
)
from cl_clipfit.registry import Registry
from cl_clipfit.report.display import ConsoleDisplay
from cl_clipfit.report.figures import plot_changes, plot_comparison, plot_run
from cl_clipfit.report.tables import comparison_csv, results_table
from cl_clipfit.runs import RunFolder, write_atomic


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
    use_exact_fp32()
    registry = Registry(config.plugin)
    _import_plugins(registry, config, display)
    stream = plan_stream(config, registry)
    plans = plan_runs(config, registry, stream.entry)
    check_model(stream.model)  # a wrong name should not cost the reading of a data set
    request = DataRequest(config.data_dir, config.unverified_data, display.note, display.transfer)
    try:
        source = load_source(stream.entry, stream.options, request)
    finally:
        display.stop()  # of a download
    # Few-shot streams differ by seed; others are one stream, built once.
    draws = {0 if stream.shots is None else plan.seed for plan in plans}
    scenarios = {draw: _scenario(stream, source, draw) for draw in draws}
    elsewhere = replace(request, data_dir=None)
    probes = {e.name: load_source(e, e.options_class()(), elsewhere) for e in stream.probes}
    data = [source.sha256, *(probe.sha256 for probe in probes.values())]
    model = create_classifier(stream.model, stream.device)
    assert model.identity is not None
    if len(plans) > 1:  # a single run finds it out itself, without a second copy of the model
        some = next(iter(scenarios.values()))
        for plan in {plan.label: plan for plan in plans}.values():
            check_strategy(plan, stream, model, some)
    results, folders = [], []
    for plan in plans:
        digest = run_digest(stream, plan, config.precision, model.identity, data)
        folder = RunFolder(config.output, stream.entry.name, plan.strategy.name, plan.seed, digest)
        result = None if config.fresh else folder.finished_result()
        if result is None:
            scenario = scenarios[0 if stream.shots is None else plan.seed]
            run = Run(stream, plan, scenario, model, probes, folder, display)
            result = _execute(run, plan, config_of(stream, plan, config), display)
            plot_run(result, folder.path / "curves")
            plot_changes(result, folder.path / "what_moved")
            folder.save_result(result)  # last: it makes the run complete
            del run
            gc.collect()
        else:
            display.note(f"{folder.path.name}: complete, shown again (--fresh repeats it)")
        results.append({**result, "label": plan.label})
        folders.append(folder.path)
    _report(results, folders, config.output / f"{stream.entry.name}-comparison", out)
    return results


def _execute(
    run: Run, plan: RunPlan, config: dict[str, Any], display: ConsoleDisplay
) -> dict[str, Any]:
    display.start_run(f"{plan.label} seed {plan.seed}")
    try:
        return run.execute(config)
    finally:
        display.stop()


def _import_plugins(registry: Registry, config: RunConfig, display: ConsoleDisplay) -> None:
    """Import every `--plugin` file; name those that fail, and go on without them."""
    for entry in registry.plugins:
        try:
            if entry.error:
                raise UserError(entry.error)
            entry.load()
        except UserError as error:
            wanted = [split_label(label)[0] for label in config.strategy]
            if entry.name in (*wanted, config.scenario):
                raise
            display.warn(f"plug-in left out: {error}")


def _scenario(stream: StreamPlan, source: Source, seed: int) -> Scenario:
    return build_scenario(
        stream.entry.name,
        source,
        tasks=stream.tasks,
        order=stream.class_order,
        shots=stream.shots,
        validation=stream.validation,
        templates=stream.templates,
        seed=seed,
    )


def _report(results: list[dict[str, Any]], folders: list[Path], path: Path, out: Console) -> None:
    plot_comparison(results, path)
    csv_file = path.with_name(f"{path.name}.csv")
    write_atomic(csv_file, comparison_csv(results, [folder.name for folder in folders]))
    out.print(results_table(results))
    for folder in folders:
        out.print(f"run folder: {folder}", highlight=False, markup=False, soft_wrap=True)
    out.print(f"comparison: {path}.png", highlight=False, markup=False, soft_wrap=True)
