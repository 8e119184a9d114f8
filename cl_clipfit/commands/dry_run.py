"""`run.py --dry-run`: what a command would run, and where; nothing is trained or written."""

from rich.console import Console
from rich.table import Table

from cl_clipfit.commands.train import distinct_runs
from cl_clipfit.config.command import RunConfig
from cl_clipfit.data.streams import Scenario
from cl_clipfit.experiment.build import build_strategy, select_first
from cl_clipfit.experiment.learner import Learner
from cl_clipfit.experiment.prepare import Prepared, prepare
from cl_clipfit.experiment.run_plan import RunPlan
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
    for one in config.by_class_order():
        _plan(one, out, ConsoleDisplay(err, config.quiet))


def _plan(config: RunConfig, out: Console, progress: ConsoleDisplay) -> None:
    """Print the runs of a command with one class order."""
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
    costs = {plan.label: _cost(plan, prepared, scenario) for plan, _ in runs}  # of any seed
    for plan, folder in runs:
        numbers = (f"{number:,}" for number in costs[plan.label])
        cells = (plan.label, str(plan.seed), *numbers, folder.path.name, _state(folder))
        table.add_row(*map(literal, cells))
    out.print(table)


def _cost(plan: RunPlan, prepared: Prepared, scenario: Scenario) -> tuple[int, int]:
    """Return how many numbers the optimiser changes, and its steps over all tasks."""
    stream, names = prepared.stream, scenario.class_names
    strategy = build_strategy(plan, stream.compute, prepared.model, names, scenario.templates)
    select_first(plan, strategy, scenario.brought[0])
    learner = Learner(strategy, plan, scenario, stream.settings.online)
    steps = sum(learner.size(task)[1] for task in range(1, scenario.trained_tasks + 1))
    return strategy.trained_numbers(), steps


def _state(folder: RunFolder) -> str:
    """Return what the command would do with a run."""
    if folder.finished_result() is not None:
        return "complete: shown again"
    return "resumed" if (folder.path / CHECKPOINTS).is_dir() else "new"
