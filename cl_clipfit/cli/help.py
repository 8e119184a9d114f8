"""The help of the command itself: on one screen, or with the rare options too.

That of its subcommands is cyclopts'.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.text import Text

from cl_clipfit.config.command import (
    ComputeSettings,
    DataSettings,
    OutputSettings,
    RunConfig,
    StreamSettings,
    TrainingSettings,
)
from cl_clipfit.errors import program

ALL = "--help-all"
_HELP = ("--help", "-h", ALL)
_GROUPS: Mapping[str, tuple[type[BaseModel], ...]] = {
    "Stream and data": (StreamSettings, DataSettings),
    "Methods": (TrainingSettings,),
    "Model and machine": (ComputeSettings,),
    "Results": (OutputSettings,),
}
# What --help shows; every other option is rare.
_COMMON = (
    "scenario", "tasks", "class_order", "shots", "data_dir", "probe",
    "strategy", "seed", "epochs", "lr", "set", "plugin",
    "model", "device", "precision",
    "output", "config", "fresh", "resume", "dry_run", "print_config",
)  # fmt: skip
_SAID = {  # on one line, where the description of the setting does not fit
    "scenario": "stream of tasks; which there are: list scenarios",
    "tasks": "number of tasks, or a file with each one's classes",
    "class_order": "natural, seed:N, one of the papers, or a file",
    "strategy": "methods, with settings as clipfit:kd_weight=2,lr=1e-3",
    "set": "an option of a strategy or scenario: info NAME",
    "model": "ARCH:TAG of open_clip, ARCH:FILE, or mini",
    "precision": "of arithmetic; auto: bf16 for wide towers",
}
_WIDTH = 100  # columns at most: longer lines are hard to read
_VALUES = {int: "N", float: "X", Path: "PATH", str: "TEXT"}


def asks_for_help(words: Sequence[str], commands: Iterable[str]) -> bool:
    """Return whether a command asks for its own help, and not for that of a subcommand."""
    return bool(set(_HELP) & set(words)) and (not words or words[0] not in set(commands))


def show_help(out: Console, commands: Mapping[str, str], everything: bool = False) -> None:
    """Print the commands and the options in groups.

    Args:
        out: where.
        commands: what each does, by name.
        everything: show the rare options too, with all of what is said of them.
    """
    out.print(Text(f"Usage: {program()} [COMMAND] [OPTIONS]", style="bold"), soft_wrap=True)
    out.print("Train CLIP on a stream of tasks; see what it learns, forgets and remembers.\n")
    lines = {name: _first_line(text) for name, text in commands.items()}
    _print_group(out, "Commands (without one: train and score; COMMAND --help)", lines, everything)
    for title, kinds in _GROUPS.items():
        fields = {name: field for kind in kinds for name, field in kind.model_fields.items()}
        order = [*(n for n in _COMMON if n in fields), *(n for n in fields if n not in _COMMON)]
        shown = {n: fields[n] for n in order if everything or n in _COMMON}
        options = {_option(n, f): _describe(n, f, everything) for n, f in shown.items()}
        _print_group(out, title, options, everything)
    rare = len(RunConfig.model_fields) - len(_COMMON)
    more = "" if everything else f"{ALL} shows {rare} more options; "
    out.print(f"{more}--install-completion teaches them to the shell", style="dim")


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].removesuffix(".")


def _print_group(out: Console, title: str, lines: Mapping[str, str], wrapped: bool) -> None:
    """Print a heading, and names with what they do: on a line each, unless it is wrapped."""
    out.print(Text(title, style="bold"))
    column = 4 + max(18, *map(len, lines))
    room = min(out.width, _WIDTH) - column
    for name, text in lines.items():
        first, *more = textwrap.wrap(text, room) if wrapped else [fitted(text, room)]
        out.print(Text.assemble((f"  {name}".ljust(column), "cyan"), first), soft_wrap=True)
        for line in more:
            out.print(Text(" " * column + line), soft_wrap=True)


def fitted(text: str, room: int) -> str:
    """Return the beginning of a sentence that fits, up to a comma, colon or semicolon if any.

    Example:
        >>> fitted("Show versions, caches and disk space, as a bug report needs them", 40)
        'Show versions, caches and disk space'
    """
    if len(text) <= room:
        return text
    cut = max(text.rfind(mark, 0, room + 1) for mark in (", ", "; ", ": "))
    return text[:cut] if cut > 0 else f"{text[: text.rfind(' ', 0, room)]}…"


def _option(name: str, field: FieldInfo) -> str:
    return f"--{name.replace('_', '-')} {placeholder(field.annotation)}".rstrip()


def placeholder(kind: Any) -> str:
    """Return what stands for an option's value: "N" for a number, "" for a switch."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is bool:
        return ""
    if origin is list:
        return f"{placeholder(arguments[0])} ..."
    if origin is Literal:
        return "|".join(map(str, arguments))
    if origin in (Union, UnionType):
        parts = [placeholder(argument) for argument in arguments if argument is not type(None)]
        return "|".join(dict.fromkeys(parts))
    if arguments and hasattr(kind, "__metadata__"):
        return placeholder(arguments[0])
    return _VALUES.get(kind, "TEXT")


def _describe(name: str, field: FieldInfo, everything: bool) -> str:
    text = (field.description or "") if everything else _SAID.get(name, field.description or "")
    default = field.default
    if everything and default not in (None, False, []):
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        text += f" [default: {shown}]"
    return text
