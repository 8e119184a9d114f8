"""Arguments that several commands share, with their help texts; and the consoles."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
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
