"""`run.py sweep`: many runs from one file, on this machine or on many."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from cl_clipfit.commands import summary
from cl_clipfit.commands.resume import check_output, check_plugins
from cl_clipfit.commands.sweep_work import work
from cl_clipfit.errors import UserError
from cl_clipfit.experiment.identity import code_has_changed
from cl_clipfit.report.display import ConsoleDisplay, literal, say
from cl_clipfit.report.results import Results, by_protocol, protocol_of
from cl_clipfit.report.sweep_board import SweepBoard
from cl_clipfit.report.tables import results_table
from cl_clipfit.runtime.progress import Progress
from cl_clipfit.runtime.signals import Stopped
from cl_clipfit.storage.result import RESULT, Result, read_result
from cl_clipfit.storage.run_folder import REPORT, file_name
from cl_clipfit.sweep.engines import Engine, Share, share_out, visible_gpus
from cl_clipfit.sweep.file import Cell, SweepFile, read_sweep
from cl_clipfit.sweep.job import Job, Outcome
from cl_clipfit.sweep.local_pool import LocalPool
from cl_clipfit.sweep.planning import Index, plan_jobs

EngineName = Literal["local", "slurm", "ray"]
SAME_SWEEP = "the same command resumes the sweep"


@dataclass(frozen=True)
class Request:
    """What `run.py sweep` was asked for.

    Attributes:
        file: the sweep file.
        output: folder of all run folders.
        engine: where the runs take place.
        share: what each run gets of a machine.
        plugins: plug-ins that the command line names.
        dry_run: show the runs, and do none.
        quiet: print only results and failures.
    """

    file: Path
    output: Path = Path("runs")
    engine: EngineName = "local"
    share: Share = field(default_factory=Share)
    plugins: Sequence[Path] = ()
    dry_run: bool = False
    quiet: bool = False


def sweep_command(request: Request, out: Console, err: Console) -> None:
    """Do the runs of a sweep that are not finished, then print the tables of all of them.

    Args:
        request: what to do.
        out: where the tables go.
        err: where progress goes.

    Raises:
        UserError: the file or a setting of it is wrong, raised before anything runs; or runs have
            failed, raised after all others have ended.
    """
    sweep = read_sweep(request.file)
    check_file(sweep, request.plugins)
    check_output(request.output)
    jobs = plan_jobs(sweep, request.output)
    if request.dry_run:
        _show_plan(jobs, Index(request.output), out)
        return
    results, failed = run_jobs(jobs, request, sweep, err)
    done = Results(results[job.key] for job in jobs if job.key in results)
    groups = by_protocol(done, across_orders=True)
    show_results(groups, out)
    say(out, f"{len(results)} of {len(jobs)} runs are finished, in {request.output}")
    if groups:
        page = request.output / f"{file_name(request.file.stem)}-{REPORT}"
        summary.write_report(page, groups, ConsoleDisplay(err, request.quiet))
        for line in summary.named(page):
            say(out, line)
    if failed:
        first = next(iter(failed.values()))
        raise UserError(
            f"{len(failed)} of {len(jobs)} runs failed, the first: {next(iter(failed))}: {first};"
            " the same command repeats them alone"
        )


def run_jobs(
    jobs: Sequence[Job], request: Request, sweep: SweepFile, err: Console
) -> tuple[dict[str, Result], dict[str, str]]:
    """Do the runs that are not finished.

    Returns:
        the finished runs by key, and what went wrong by name of the run.
    """
    index, display = Index(request.output), ConsoleDisplay(err, request.quiet)
    results = {job.key: result for job in jobs if (result := finished(job, index))}
    changed = [r for r in results.values() if code_has_changed(r.content)]
    if changed:
        display.warn(f"{len(changed)} finished runs were made by other code of cl_clipfit")
    waiting = [job for job in jobs if job.key not in results]
    failed: dict[str, str] = {}
    if not waiting:
        return results, failed
    engine = choose_engine(request, sweep, waiting, display)
    board = SweepBoard(err, len(jobs), len(results), request.quiet)
    try:
        with board:
            for event in engine.events(waiting, work):
                name = event.job.name
                if event.kind == "started":
                    board.started(name, event.text)
                elif event.kind == "progress":
                    board.progress(name, event.text)
                elif (outcome := event.outcome) is not None:
                    outcome = _taken(event.job, outcome, index, results)
                    if outcome.state != "done":
                        failed[name] = outcome.text
                    board.ended(name, outcome.state, outcome.text, outcome.seconds)
    except Stopped as stopped:
        stopped.advice = stopped.advice or SAME_SWEEP
        raise
    return results, failed


def finished(job: Job, index: Index) -> Result | None:
    """Return the result of a run that is finished, under the name that the sweep gives it."""
    folder = index.folder(job)
    content = read_result(folder / RESULT) if folder is not None else None
    if folder is None or content is None:
        return None
    return Result(folder, {**content, "label": job.label})


def _taken(job: Job, outcome: Outcome, index: Index, results: dict[str, Result]) -> Outcome:
    """Keep the result of a run that ended; return what to show of it."""
    if outcome.state != "done":
        return outcome
    index.add(job, outcome.folder)
    try:
        result = finished(job, index)
    except UserError as error:
        return replace(outcome, state="failed", text=str(error))
    if result is None:
        text = f"its folder {outcome.folder} is not in {job.output}"
        return replace(outcome, state="failed", text=text)
    results[job.key] = result
    return outcome


def choose_engine(
    request: Request, sweep: SweepFile, jobs: Sequence[Job], progress: Progress
) -> Engine:
    """Return the engine for the runs that are to be done.

    Raises:
        UserError: its library is not installed, or a parameter is wrong.
    """
    on_gpu = any(job.settings.get("device", "auto") != "cpu" for job in jobs)
    if request.engine == "slurm":
        from cl_clipfit.sweep.on_slurm import SlurmArray

        array = SlurmArray(request.output.resolve(), request.share, sweep.slurm, on_gpu)
        if not array.is_slurm:
            progress.note("there is no SLURM here: submitit starts the jobs on this machine")
        return array
    if request.engine == "ray":
        from cl_clipfit.sweep.on_ray import RayTasks

        return RayTasks(request.share, on_gpu)
    gpus = visible_gpus() if on_gpu else []
    return LocalPool(share_out(request.share, len(jobs), gpus, on_gpu))


def check_file(sweep: SweepFile, plugins: Sequence[Path]) -> None:
    """Refuse plug-ins that the command line does not name, and devices that the engine chooses.

    Raises:
        UserError: the file names one of them.
    """
    for section in (sweep.common, *sweep.listed, *_grid_cells(sweep)):
        named = section.get("plugin") or []
        check_plugins(named if isinstance(named, list) else [named], plugins, sweep.path)
        device = str(section.get("device", "auto"))
        if ":" in device:
            raise UserError(
                f"{sweep.place('device')}: the engine gives every run its GPU: say"
                f" {device.partition(':')[0]}, not {device}"
            )


def _grid_cells(sweep: SweepFile) -> list[Cell]:
    return [{key: value} for key, values in sweep.grid.items() for value in values]


def _show_plan(jobs: Sequence[Job], index: Index, out: Console) -> None:
    """Print the runs of a sweep and their state."""
    table = Table(title=f"{len(jobs)} runs; nothing was run or written", title_justify="left")
    for title in ("run", "settings", "state"):
        table.add_column(title, overflow="fold")
    for job in jobs:
        state = "complete" if finished(job, index) else "to do"
        table.add_row(literal(job.name), job.key[:8], state)
    out.print(table)


def show_results(groups: Sequence[Results], out: Console) -> None:
    """Print a table for each protocol: mean and 95 % interval over seeds and class orders."""
    protocols = [protocol_of(group[0].content) for group in groups]
    for protocol, group in zip(protocols, groups, strict=True):
        differing = [
            value if name == "cut" else f"{name} {value}"
            for name, value in protocol.items()
            if name not in ("stream", "class order")
            and value
            and len({other[name] for other in protocols}) > 1
        ]
        if differing:  # the table's title does not say it
            say(out, f"{', '.join(differing)}:")
        out.print(results_table(group.contents))
