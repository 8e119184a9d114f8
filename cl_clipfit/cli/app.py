"""The command line: `run.py`, `run.py list`, `run.py info`."""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import App, Parameter
from pydantic import ValidationError
from rich.console import Console

from cl_clipfit import __version__
from cl_clipfit.cli.bank import bank
from cl_clipfit.commands.resume import check_plugins, check_plugins_of_run, resumed_settings
from cl_clipfit.config.command import RunConfig, read_config
from cl_clipfit.config.merge_settings import ModeSettings
from cl_clipfit.config.options import explain
from cl_clipfit.errors import UserError, printable
from cl_clipfit.runtime.allocator import keep_freed_memory
from cl_clipfit.runtime.signals import Stopped, graceful

WIDTH_WITHOUT_TERMINAL = 120

app = App(
    name="run.py",
    version=__version__,
    help="Train CLIP on a stream of tasks and see what it learns, forgets and remembers.",
    default_parameter=Parameter(consume_multiple=True, negative=()),
)


app.command(bank)


def _console(stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_WITHOUT_TERMINAL
    return console


@app.default
def run(*, config: Annotated[RunConfig | None, Parameter(name="*")] = None) -> None:
    """Run strategies on a scenario; without options, three of them on real digits."""
    given = config or RunConfig()
    settings = given.model_dump(exclude_unset=True)
    if given.resume is not None and "output" in settings:
        raise UserError("--output: --resume goes on in the folder it names: leave one of them out")
    if given.config is not None:
        settings = {**read_config(given.config), **settings}
    if given.resume is not None:
        settings = resumed_settings(given.resume, settings)
    if where := given.config or given.resume:
        check_plugins(settings.get("plugin", ()), given.plugin, where)
    from cl_clipfit.commands.train import run_command

    run_command(RunConfig.model_validate(settings), _console(), _console(stderr=True))


@app.command(name="list")
def list_(
    what: Literal["strategies", "scenarios", "models"],
    pattern: str = "",
    /,
    *,
    plugin: list[Path] | None = None,
) -> None:
    """List strategies, scenarios or models.

    Parameters
    ----------
    what
        What to list.
    pattern
        Part of a name.
    plugin
        Python files to list too.
    """
    from cl_clipfit.commands.catalogue import list_entries, list_models

    if what == "models":
        list_models(pattern, _console())
    else:
        list_entries(what, pattern, plugin or [], _console())


@app.command
def info(name: str, /, *, plugin: list[Path] | None = None) -> None:
    """Show the parameters, defaults, meanings and sources of a strategy or scenario.

    Parameters
    ----------
    name
        Name of a strategy or scenario.
    plugin
        Python files to look in too.
    """
    from cl_clipfit.commands.catalogue import show_info

    show_info(name, plugin or [], _console())


@app.command
def merge(
    run: Path,
    /,
    *,
    method: str,
    set: list[str] | None = None,
    settings: Annotated[ModeSettings | None, Parameter(name="*")] = None,
    device: str | None = None,
    fresh: bool = False,
    plugin: list[Path] | None = None,
) -> None:
    """Merge a finished run after every task; the result is a run of its own.

    Parameters
    ----------
    run
        Folder of the run.
    method
        mergetune, or latest, mean, sum, wise, ties, dare, magmax, fisher.
    set
        mergetune.key=value: settings of the method mergetune.
    settings
        Settings of the other methods.
    device
        Where to compute; default where the run was trained.
    fresh
        Repeat a merge that is complete.
    plugin
        The plug-ins that the run was made with: they run code.
    """
    check_plugins_of_run(run, plugin or [])
    from cl_clipfit.commands.merge import merge_run

    merge_run(
        run, method, settings or ModeSettings(), set or [], _console(), _console(stderr=True),
        device=device, fresh=fresh,
    )  # fmt: skip


@app.command
def landscape(
    run: Path,
    /,
    *,
    task: int | None = None,
    images: int = 512,
    plane: Annotated[bool, Parameter(negative="--no-plane")] = True,
    device: str | None = None,
    plugin: list[Path] | None = None,
) -> None:
    """Measure loss and accuracy between zero-shot CLIP and the solutions of a finished run.

    Parameters
    ----------
    run
        Folder of the run.
    task
        After which task; default the last.
    images
        At most so many training images of the task, and test images of the classes seen.
    plane
        Measure the plane through three solutions too.
    device
        Where to compute; default where the run was trained.
    plugin
        The plug-ins that the run was made with: they run code.
    """
    check_plugins_of_run(run, plugin or [])
    from cl_clipfit.commands.landscape import Request, landscape_command

    request = Request(run, task, images, plane, device)
    landscape_command(request, _console(), _console(stderr=True))


@app.command
def verify(run: Path, /, *, replay: bool = False, plugin: list[Path] | None = None) -> None:
    """Check that a finished run is what was written, and its numbers what its tables give.

    Parameters
    ----------
    run
        Folder of the run.
    replay
        Train a task of it again too, and compare.
    plugin
        The plug-ins that the run was made with: they run code.
    """
    if replay:
        check_plugins_of_run(run, plugin or [])
    from cl_clipfit.commands.verify import verify_run

    verify_run(run, _console(), _console(stderr=True), replay=replay)


def _quiet_libraries() -> None:
    """Keep remarks of dependencies, which users can do nothing about, off the screen."""
    logging.basicConfig(level=logging.ERROR)
    warnings.filterwarnings("ignore", message="no QP solver found")
    warnings.filterwarnings("ignore", category=FutureWarning)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 2 for bad input, 130 or 143 by a signal."""
    _quiet_libraries()
    keep_freed_memory()
    try:
        with graceful():
            app(argv, exit_on_error=False, print_error=False, result_action="return_value")
        return 0
    except Stopped as stopped:
        advice = f": {stopped.advice}" if stopped.advice else ""
        print(printable(f"stopped by {stopped}{advice}"), file=sys.stderr)
        return stopped.exit_code
    except ValidationError as error:
        message = explain(error)
    except cyclopts.CycloptsError as error:
        cause = error.__cause__
        message = explain(cause, "--") if isinstance(cause, ValidationError) else str(error)
    except UserError as error:
        if os.environ.get("CL_CLIPFIT_DEBUG"):
            raise
        message = str(error)
    line = printable(" ".join(message.split()))
    print(f"error: {line}", file=sys.stderr)
    return 2
