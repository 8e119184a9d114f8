"""`run.py --dry-run`: what a command would run, and where; nothing is trained or written."""

from rich.console import Console
from rich.table import Table

from cl_clipfit.commands.train import distinct_runs
from cl_clipfit.config.command import RunConfig
from cl_clipfit.experiment.build import build_strategy, select_first
from cl_clipfit.experiment.learner import Learner
from cl_clipfit.experiment.prepare import prepare
from cl_clipfit.report.display import ConsoleDisplay, describe_stream, literal
from cl_clipfit.storage.manifest import CHECKPOINTS
from cl_clipfit.storage.run_folder import RunFolder


def dry_run(config: RunConfig, out: Console, err: Console) -> None:
    """Print every run of a command: what trains, for how many steps, its folder and its state.

    Args:
        config: the command's settings.
        out: where the plan goes.
        err: where progress goes.

    Raises:
        UserError: a name, file or value is wrong, or a strategy cannot be built.
    """
    progress = ConsoleDisplay(err, config.quiet)
    prepared = prepare(config, progress)
    runs = distinct_runs(prepared, progress)
    scenario = prepared.scenario(runs[0][0].seed)
    scored = "test" if config.validation is None else "validation"
    table = Table(
        title=f"{literal(describe_stream(scenario, scored))}\n{literal(prepared.stream.model)} on"
        f" {prepared.stream.compute.device}, {prepared.stream.compute.precision}",
        caption=f"folders in {literal(str(config.output))}; nothing was trained or written",
        title_justify="left",
        caption_justify="left",
    )
    for title in ("strategy", "seed", "trainable\nparameters", "steps", "folder", "state"):
        table.add_column(title, overflow="fold")
    for plan, folder in runs:
        strategy = build_strategy(
            plan, prepared.stream.compute, prepared.model, scenario.class_names, scenario.templates
        )
        select_first(plan, strategy, scenario.brought[0])
        learner = Learner(strategy, plan, scenario, config.online)
        steps = sum(learner.size(task)[1] for task in range(1, scenario.trained_tasks + 1))
        trained = f"{strategy.trained_numbers():,}"
        cells = (
            plan.label,
            str(plan.seed),
            trained,
            f"{steps:,}",
            folder.path.name,
            _state(folder),
        )
        table.add_row(*map(literal, cells))
    out.print(table)


def _state(folder: RunFolder) -> str:
    """Return what the command would do with a run."""
    if folder.finished_result() is not None:
        return "complete: shown again"
    return "resumed" if (folder.path / CHECKPOINTS).is_dir() else "new"
