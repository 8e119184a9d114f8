"""`run.py bank ...`: inspect, compare, score and export what a finished run trained."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from cl_clipfit.cli.arguments import Device, ExportMode, Modes, Plugins, RunPath, Settings, consoles
from cl_clipfit.commands.resume import check_plugins_of_run

bank = App(name="bank", help="Look into what a finished run trained, compare and export it.")


@bank.command(name="list")
def list_(run: Annotated[Path, Parameter(help="Folder of a run, or of its bank.")], /) -> None:
    """List the tasks of a bank and verify its files; needs no model."""
    from cl_clipfit.commands.bank import list_bank

    list_bank(run, consoles()[0])


@bank.command
def show(
    run: Annotated[Path, Parameter(help="Folder of a run; or of a bank, which needs no model.")],
    task: Annotated[int, Parameter(help="The task, counted from 1.")],
    /,
    *,
    plugin: Plugins = None,
) -> None:
    """Show the tensors of a task."""
    check_plugins_of_run(run, plugin or [])
    from cl_clipfit.commands.bank import show_task

    show_task(run, task, *consoles())


@bank.command
def diff(
    run: RunPath,
    /,
    *,
    task: Annotated[
        int | None, Parameter(help="Show the difference from this task; 0 is the pretrained model.")
    ] = None,
    to: Annotated[int | None, Parameter(help="To this task.")] = None,
    plugin: Plugins = None,
) -> None:
    """Show which layers each task moved most, and draw it into the run's folder."""
    check_plugins_of_run(run, plugin or [])
    from cl_clipfit.commands.bank import diff_bank

    diff_bank(run, *consoles(), task=task, to=to)


@bank.command
def export(
    run: RunPath,
    file: Annotated[Path, Parameter(help="A new file, .safetensors or .pt.")],
    /,
    *,
    mode: ExportMode = "latest",
    task: Annotated[int | None, Parameter(help="Merge tasks 1 to this one; default all.")] = None,
    settings: Settings = None,
    force: Annotated[bool, Parameter(help="Replace the file if it exists.")] = False,
    plugin: Plugins = None,
) -> None:
    """Write the merged model as a checkpoint that open_clip reads, and check it."""
    check_plugins_of_run(run, plugin or [])
    from cl_clipfit.commands.bank_export import export_bank

    export_bank(run, file, *consoles(), mode=mode, settings=settings, task=task, force=force)


@bank.command(name="eval")
def eval_(
    run: RunPath,
    /,
    *,
    mode: Modes,
    settings: Settings = None,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Score the bank merged or routed in other ways, on the run's own stream."""
    check_plugins_of_run(run, plugin or [])
    from cl_clipfit.commands.merge import evaluate_bank
    from cl_clipfit.config.merge_settings import ModeSettings

    evaluate_bank(run, mode, settings or ModeSettings(), *consoles(), device=device)
