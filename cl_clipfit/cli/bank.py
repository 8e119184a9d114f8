"""`run.py bank ...`: what the tasks of a finished run trained."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console

from cl_clipfit.commands.resume import check_plugins_of_run
from cl_clipfit.config.merge_settings import ModeSettings

bank = App(name="bank", help="Look into what a finished run trained, compare and export it.")


def _consoles() -> tuple[Console, Console]:
    """Return where results go, and where progress goes."""
    from cl_clipfit.cli.app import _console  # which imports this file

    return _console(), _console(stderr=True)


@bank.command(name="list")
def list_(run: Path, /) -> None:
    """List the tasks of a bank and verify its files; needs no model.

    Parameters
    ----------
    run
        Folder of a run, or of its bank.
    """
    from cl_clipfit.commands.bank import list_bank

    list_bank(run, _consoles()[0])


@bank.command
def show(run: Path, task: int, /, *, plugin: list[Path] | None = None) -> None:
    """Show the tensors of a task.

    Parameters
    ----------
    run
        Folder of a run; or of a bank, where no model is needed or compared with.
    task
        The task, counted from 1.
    plugin
        The plug-ins that the run was made with: they run code.
    """
    check_plugins_of_run(run, plugin or [])
    from cl_clipfit.commands.bank import show_task

    show_task(run, task, *_consoles())


@bank.command
def diff(
    run: Path,
    /,
    *,
    task: int | None = None,
    to: int | None = None,
    plugin: list[Path] | None = None,
) -> None:
    """Show which layers each task moved most, and draw it into the run's folder.

    Parameters
    ----------
    run
        Folder of a run.
    task
        Show the difference between two tasks, from this one; 0 is the pretrained model.
    to
        To this one.
    plugin
        The plug-ins that the run was made with: they run code.
    """
    check_plugins_of_run(run, plugin or [])
    from cl_clipfit.commands.bank import diff_bank

    diff_bank(run, *_consoles(), task=task, to=to)


@bank.command
def export(
    run: Path,
    file: Path,
    /,
    *,
    mode: str = "latest",
    task: int | None = None,
    settings: Annotated[ModeSettings | None, Parameter(name="*")] = None,
    force: bool = False,
    plugin: list[Path] | None = None,
) -> None:
    """Write the merged model as a checkpoint that open_clip reads, and check it.

    Parameters
    ----------
    run
        Folder of a run.
    file
        A new file, .safetensors or .pt.
    mode
        How tasks are merged: latest, mean, sum, wise, ties, dare or magmax.
    task
        Merge tasks 1 to this one; default all.
    settings
        Settings of the mode.
    force
        Replace the file where it exists.
    plugin
        The plug-ins that the run was made with: they run code.
    """
    check_plugins_of_run(run, plugin or [])
    from cl_clipfit.commands.export import export_bank

    export_bank(run, file, *_consoles(), mode=mode, settings=settings, task=task, force=force)


@bank.command(name="eval")
def eval_(
    run: Path,
    /,
    *,
    mode: list[str],
    settings: Annotated[ModeSettings | None, Parameter(name="*")] = None,
    device: str | None = None,
    plugin: list[Path] | None = None,
) -> None:
    """Score the bank merged or routed in other ways, on the run's own stream.

    Parameters
    ----------
    run
        Folder of a run.
    mode
        latest, mean, sum, wise, ties, dare, magmax, fisher, oracle, routed; or all.
    settings
        Settings of the modes.
    device
        Where to compute; default where the run was trained.
    plugin
        The plug-ins that the run was made with: they run code.
    """
    check_plugins_of_run(run, plugin or [])
    from cl_clipfit.commands.merge import evaluate_bank

    evaluate_bank(run, mode, settings or ModeSettings(), *_consoles(), device=device)
