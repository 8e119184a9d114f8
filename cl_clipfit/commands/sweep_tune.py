"""`run.py sweep --tune N`: search settings on held-out training images."""

from statistics import fmean

from rich.console import Console
from rich.table import Table

from cl_clipfit.commands.resume import check_output
from cl_clipfit.commands.sweep import Request, check_file, run_jobs
from cl_clipfit.config.parsing import format_setting
from cl_clipfit.errors import program
from cl_clipfit.report.display import literal, say
from cl_clipfit.storage.files import write_yaml
from cl_clipfit.sweep.file import Cell, SweepFile, read_sweep
from cl_clipfit.sweep.tuning import Study, leaders, make_studies

TUNED = "tuned.yaml"  # in the output folder: the sweep with the settings that were chosen
_AT_A_TIME = 8  # trials of a study; the search does not depend on the machine


def tune_command(request: Request, trials: int, out: Console, err: Console) -> None:
    """Search the settings of every method and stream of a sweep, then write the tuned sweep.

    Args:
        request: what to do.
        trials: settings to try of every method and stream.
        out: where the tables go.
        err: where progress goes.

    Raises:
        UserError: the file or a setting of it is wrong, or every trial of a method failed.
    """
    sweep = read_sweep(request.file)
    check_file(sweep, request.plugins)
    check_output(request.output)
    studies = make_studies(sweep)
    done = 0
    while done < trials:
        batch = min(_AT_A_TIME, trials - done)
        asked = [(study, study.ask(request.output)) for study in studies for _ in range(batch)]
        jobs = list({trial.job.key: trial.job for _, trial in asked}.values())
        results, _ = run_jobs(jobs, request, sweep, err)
        for study, trial in asked:
            study.tell(trial, results.get(trial.job.key))
        done += batch
    for study in studies:
        _show(study, out)
    file = request.output / TUNED
    write_yaml(file, tuned(sweep, studies))
    say(out, f"the sweep with these settings: {program()} sweep {file}")


def _show(study: Study, out: Console) -> None:
    """Print what was tried, what leads when, and what the search looked at."""
    best, finished = study.best(), [trial for trial in study.trials if trial.curve]
    table = Table(
        title=f"{literal(study.name)}: accuracy over the classes seen, on held-out training"
        " images, in percent",
        title_justify="left",
        caption="* best mean over the stream; the last columns are after the first and last task",
        caption_justify="left",
    )
    for title in ("trial", *study.space):
        table.add_column(literal(title), overflow="fold")
    for title in ("mean", "first", "last"):
        table.add_column(title, justify="right")
    for trial in sorted(finished, key=lambda trial: -trial.score)[:10]:
        curve = trial.curve or [0.0]
        mark = "*" if trial is best else ""
        values = (_short(value) for value in trial.values.values())
        numbers = (f"{number:.1f}" for number in (trial.score, curve[0], curve[-1]))
        table.add_row(f"{trial.handle.number}{mark}", *map(literal, values), *numbers)
    out.print(table)
    for line in (looked_at(study), before_each_task(study)):
        say(out, line)


def looked_at(study: Study) -> str:
    """Return one line on the images that a search was scored on."""
    tasks = study.results[0].content["tasks"]
    held_out = sum(task["test_samples"] for task in tasks)
    trained = sum(task["train_samples"] for task in tasks)
    base = study.held_out
    order = base.get("class_order", "the stream's order")
    return (
        f"looked at: {held_out:,} training images of {len(tasks)} tasks, held out from each task"
        f" before it is trained on ({trained:,} others), class order {order}, seed {base['seed']};"
        f" {len(study.results)} runs; no test image, no probe"
    )


def before_each_task(study: Study) -> str:
    """Return one line on what would be chosen before each task, by the tasks before it alone."""
    finished = [trial for trial in study.trials if trial.curve]
    curves = [trial.curve or [] for trial in finished]
    if len(curves[0]) < 2:
        return "the stream has a single task: nothing is seen before it is trained on"
    chosen = leaders(curves)
    switched = fmean(curves[at][task] for task, at in enumerate(chosen, 1))
    best = curves[finished.index(study.best())]
    names = [str(finished[at].handle.number) for at in chosen]
    return (
        f"best before task 2 ... {len(curves[0])}, by the tasks before it: trial"
        f" {', '.join(names)}; these have {switched:.1f} after these tasks,"
        f" the chosen trial {fmean(best[1:]):.1f}"
    )


def tuned(sweep: SweepFile, studies: list[Study]) -> Cell:
    """Return the content of a sweep file: every method with its settings, seeds and orders."""
    per_run = {key: sweep.grid[key] for key in ("seed", "class_order") if key in sweep.grid}
    shared = {key: value for key, value in sweep.common.items() if key in ("seed", "class_order")}
    listed = [{**study.cell, **study.best().values} for study in studies]
    parts: Cell = {"common": shared, "grid": per_run, "list": listed, "slurm": {**sweep.slurm}}
    return {name: part for name, part in parts.items() if part}


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else format_setting(value)
