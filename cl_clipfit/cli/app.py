"""The command line: `run.py` itself, `list`, `info`, `sweep` and `doctor`."""

import gc
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import App, Parameter
from pydantic import ValidationError

from cl_clipfit import __version__
from cl_clipfit.cli.arguments import console, consoles, keep_text
from cl_clipfit.cli.bank import bank
from cl_clipfit.cli.finished import (
    compare,
    export,
    extend,
    landscape,
    merge,
    predict,
    report,
    verify,
)
from cl_clipfit.cli.habits import meet_habits
from cl_clipfit.cli.help import ALL, asks_for_help, show_help
from cl_clipfit.cli.mistakes import bare_list, commands, explain_mistake
from cl_clipfit.commands.resume import check_output, check_plugins, resumed_settings
from cl_clipfit.config.command import RunConfig, read_config
from cl_clipfit.config.options import explain
from cl_clipfit.errors import UserError, printable, program
from cl_clipfit.experiment.names import check_names
from cl_clipfit.runtime.allocator import keep_freed_memory
from cl_clipfit.runtime.launch import LostError, declared, refuse_several, reports
from cl_clipfit.runtime.signals import Stopped, graceful
from cl_clipfit.runtime.threads import yield_waiting_cores

# Imports create a million objects that live on; Python's default is to look for garbage among them
# after every 700, which takes a tenth of the start-up time.
_GC_THRESHOLD = 50_000

app = App(
    name=program(),
    version=__version__,
    help="Train CLIP on a stream of tasks and see what it learns, forgets and remembers.",
    default_parameter=Parameter(
        consume_multiple=True,
        negative=(),
        json_list=False,
        json_dict=False,
        allow_repeating=True,  # of a single value the last counts, as in other commands
    ),
    config=keep_text,
)


app.command(bank)


@app.default
def run(*, config: Annotated[RunConfig | None, Parameter(name="*")] = None) -> None:
    """Run strategies on a scenario; without options, four of them on real digits."""
    given = config or RunConfig()
    settings = given.model_dump(exclude_unset=True)
    if given.resume is not None and "output" in settings:
        raise UserError("--output: --resume names the folder already: leave one of them out")
    if given.config is not None:
        settings = {**read_config(given.config), **settings}
    if given.resume is not None:
        settings = resumed_settings(given.resume, settings)
    if where := given.config or given.resume:
        check_plugins(settings.get("plugin", ()), given.plugin, where)
    asked = RunConfig.model_validate(settings)
    check_output(asked.output)
    check_names(asked)
    if asked.print_config:
        print(asked.as_yaml(), end="")
        return
    if asked.dry_run and declared().rank > 0:
        return
    if asked.dry_run:
        from cl_clipfit.commands.dry_run import dry_run

        dry_run(asked, *consoles())
        return
    from cl_clipfit.commands.train import run_command

    run_command(asked, *consoles())


@app.command(name="list")
def list_(
    what: Annotated[
        Literal["strategies", "scenarios", "models", "metrics"], Parameter(help="What to list.")
    ],
    pattern: Annotated[str, Parameter(help="Part of a name.")] = "",
    /,
    *,
    plugin: Annotated[list[Path] | None, Parameter(help="Python files to list too.")] = None,
) -> None:
    """List strategies, scenarios, models, or metrics of kept predictions."""
    from cl_clipfit.commands.catalogue import list_entries, list_models

    if what == "models":
        list_models(pattern, console())
    else:
        list_entries(what, pattern, plugin or [], console())


@app.command
def info(
    name: Annotated[str, Parameter(help="Name of a strategy or scenario.")],
    /,
    *,
    plugin: Annotated[list[Path] | None, Parameter(help="Python files to look in too.")] = None,
) -> None:
    """Show the options of a strategy or scenario, with defaults, meanings and sources."""
    from cl_clipfit.commands.catalogue import show_info

    show_info(name, plugin or [], console())


for command in (merge, landscape, verify, predict, compare, report):  # in the order of the help
    app.command(command)


@app.command
def sweep(
    file: Annotated[Path, Parameter(help="YAML file with common, grid and list.")],
    /,
    *,
    engine: Annotated[
        Literal["local", "slurm", "ray"], Parameter(help="What does the runs, and where.")
    ] = "local",
    output: Annotated[Path, Parameter(help="Folder of all run folders.")] = Path("runs"),
    workers: Annotated[
        int | None, Parameter(help="Runs at a time; default as many as fit.")
    ] = None,
    threads: Annotated[
        int | None, Parameter(help="Cores per run; default: all, shared by the workers.")
    ] = None,
    gpus: Annotated[
        float | None,
        Parameter(help="GPUs per run, as 0.5 if two share one; default 1 where there are any."),
    ] = None,
    tune: Annotated[
        int | None,
        Parameter(help="Search the section tune with so many trials, on held-out images."),
    ] = None,
    dry_run: Annotated[bool, Parameter(help="Show the runs; do none.")] = False,
    quiet: Annotated[bool, Parameter(help="Print only results and failures.")] = False,
    plugin: Annotated[
        list[Path] | None, Parameter(help="The plug-ins that the file names: they run code.")
    ] = None,
) -> None:
    """Do many runs from one file; finished ones are skipped, unfinished ones resumed."""
    for option, number in (("--workers", workers), ("--threads", threads), ("--tune", tune)):
        if number is not None and number < 1:
            raise UserError(f"{option} {number}: expected at least 1")
    from cl_clipfit.commands.sweep import Request, sweep_command
    from cl_clipfit.sweep.engines import Share

    share = Share(workers, threads, gpus)
    request = Request(file, output, engine, share, plugin or [], dry_run, quiet)
    if tune is None:
        sweep_command(request, *consoles())
        return
    from cl_clipfit.commands.sweep_tune import tune_command

    tune_command(request, tune, *consoles())


@app.command
def doctor() -> None:
    """Show versions, hardware, caches and disk space, as a bug report needs them."""
    from cl_clipfit.commands.doctor import doctor as show

    show(console())


app.command(export)
app.command(extend)


def _quiet_libraries() -> None:
    """Silence warnings of dependencies that users cannot act on, and those shown elsewhere."""
    logging.basicConfig(level=logging.ERROR)
    warnings.filterwarnings("ignore", message="no QP solver found")
    warnings.filterwarnings("ignore", category=FutureWarning)
    # A model's warnings are those of its runs.
    warnings.filterwarnings("ignore", module=r"cl_clipfit\.clip\.loading")


@app.command(name="--install-completion")
def install_completion(
    shell: Annotated[
        Literal["bash", "zsh", "fish"] | None, Parameter(help="Default: the one in use.")
    ] = None,
    /,
) -> None:
    """Write completions for the shell, and say where."""
    from cl_clipfit.cli.completion import install

    for line in install(app, shell):
        print(line)


_COMMANDS = commands(app)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 2 on bad input, 130 or 143 on a signal."""
    _quiet_libraries()
    keep_freed_memory()
    yield_waiting_cores()
    gc.set_threshold(_GC_THRESHOLD)
    words, lost = meet_habits(sys.argv[1:] if argv is None else argv), False
    try:
        if asks_for_help(words, _COMMANDS):
            screen = console()
            screen.width = screen.width if screen.is_terminal else 80
            show_help(screen, {name: app[name].help for name in _COMMANDS}, ALL in words)
            return 0
        if bare := "" if words[:1] and words[0] in _COMMANDS else bare_list(words):
            raise UserError(bare)
        with graceful():
            refuse_several(words, _COMMANDS)
            app(words, exit_on_error=False, print_error=False, result_action="return_value")
        return 0
    except Stopped as stopped:
        if not reports():
            return stopped.exit_code
        advice = f": {stopped.advice}" if stopped.advice else ""
        print(printable(f"stopped by {stopped}{advice}"), file=sys.stderr)
        return stopped.exit_code
    except ValidationError as error:
        message = explain(error)
    except cyclopts.CycloptsError as error:
        cause = error.__cause__
        message = (
            explain(cause, "--")
            if isinstance(cause, ValidationError)
            else explain_mistake(app, error, words)
        )
    except UserError as error:
        if os.environ.get("CL_CLIPFIT_DEBUG"):
            raise
        message, lost = str(error), isinstance(error, LostError)
    line = printable(" ".join(message.split()))
    if reports(lost):
        print(f"error: {line}", file=sys.stderr)
    return 2
