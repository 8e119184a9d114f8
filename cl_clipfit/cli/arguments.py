"""Arguments that several commands share, with their help texts; and the consoles."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_origin

from cyclopts import ArgumentCollection, Parameter
from rich.console import Console

from cl_clipfit.config.merge_settings import ALL, CLOSED_FORM, MERGING, ModeSettings

WIDTH_WITHOUT_TERMINAL = 120

RunPath = Annotated[Path, Parameter(help="Folder of a finished run.")]
Plugins = Annotated[
    list[Path] | None, Parameter(help="The plug-ins that the run was made with: they run code.")
]
Device = Annotated[
    str | None, Parameter(help="Where to compute; default where the run was trained.")
]
Settings = Annotated[ModeSettings | None, Parameter(name="*")]
Modes = Annotated[list[str], Parameter(help=f"{', '.join(ALL)}; or all.")]
ExportMode = Annotated[
    str,
    Parameter(help=f"How tasks are merged: {', '.join(CLOSED_FORM[:-1])} or {CLOSED_FORM[-1]}."),
]
Method = Annotated[str, Parameter(help=f"mergetune, or {', '.join(MERGING)}.")]


def console(stderr: bool = False) -> Console:
    """Return the console for results, or the one for progress."""
    chosen = Console(stderr=stderr, highlight=False)
    if not chosen.is_terminal:
        chosen.width = WIDTH_WITHOUT_TERMINAL
    return chosen


def consoles() -> tuple[Console, Console]:
    """Return the consoles for results and for progress."""
    return console(), console(stderr=True)


def folders(paths: Sequence[Path]) -> Sequence[Path]:
    """Return the folders of runs, default `runs`, without the files that `runs/*` names as well."""
    return [path for path in paths if not path.is_file()] or paths or [Path("runs")]


def keep_text(app: Any, commands: Any, arguments: ArgumentCollection) -> None:
    """Keep what is typed: of the lists of a model, cyclopts would parse what looks like JSON."""
    for argument in arguments:
        if argument.keys and get_origin(argument.resolved_hint) is list:  # keys: of a model
            argument.tokens = [
                token.evolve(implicit_value=[token.value])
                if token.value.lstrip().startswith(("{", "["))
                else token
                for token in argument.tokens
            ]
