"""The exception whose message is shown to the user, and helpers to write that message."""

import difflib
import os
import shlex
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable
from pathlib import Path

_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format, surrogate, line separators
_HARMLESS = "\n\t\u200c\u200d"  # the last two are zero-width (non-)joiners, as in Persian and emoji


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and what to do. Exit code 2.

    Args:
        message: the line.
        reason: what is wrong, without where; default: the whole line.

    Attributes:
        reason: for callers that state the place themselves.
    """

    def __init__(self, message: str = "", *, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = printable(message if reason is None else reason)

    def __str__(self) -> str:
        return printable(super().__str__())


class StrategyWarning(UserWarning):
    """What a strategy records in its `warnings`, shown to code that is not a run."""


def printable(text: str) -> str:
    r"""Escape what a terminal would interpret or hide: control sequences, changes of direction.

    Example:
        >>> print(printable("caf\u00e9 \x1b[2J"))
        café \x1b[2J
    """
    if text.isprintable():
        return text
    return "".join(
        ascii(c)[1:-1] if unicodedata.category(c) in _UNSEEN and c not in _HARMLESS else c
        for c in text
    )


_LONGEST = 100  # characters of a name that are compared
_LONGEST_LIST = 160  # characters of a list of names in a message


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a sentence that helps with an unknown name: the closest valid one, or a list.

    Names are compared without regard to case.
    """
    options = sorted(names)
    folded = {option.casefold(): option for option in reversed(options)}
    close = difflib.get_close_matches(name[:_LONGEST].casefold(), folded, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{folded[close[0]]}'?"
    return f"Known: {listed(options)}." if options else "There is none."


def listed(names: Iterable[str]) -> str:
    """Return names in a row, cut where they would fill more than two lines."""
    return textwrap.shorten(", ".join(names), _LONGEST_LIST, placeholder=" ...")


def is_file(path: str | Path, or_folder: bool = False) -> bool:
    """Return whether a file (or folder) exists; False for a name that no file can have."""
    try:
        return Path(path).is_file() or (or_folder and Path(path).is_dir())
    except (OSError, ValueError):  # too long, or with a null character
        return False


def is_folder(path: Path) -> bool:
    """Return whether a folder exists; False for a name that no folder can have."""
    return is_file(path, or_folder=True) and not is_file(path)


def shown_first(text: str) -> str:
    """Return a sentence as it reads within another one.

    Example:
        >>> shown_first("Folder of a run."), shown_first("CSV file to write.")
        ('folder of a run', 'CSV file to write')
    """
    begins = text[:1].lower() if text[1:2].islower() else text[:1]
    return begins + text[1:].removesuffix(".")


def program() -> str:
    """Return how to start this program, for the commands that messages show: they can be pasted."""
    script = Path(sys.argv[0])
    if script.name == "cl-clipfit":
        return _typed(script)
    python = _typed(Path(sys.executable))
    return (
        f"{python} {shlex.quote(str(script))}"
        if script.name == "run.py"
        else (f"{python} -m cl_clipfit")
    )


def _typed(file: Path) -> str:
    """Return what to type to run a file: its name if it is on the PATH, else a short path."""
    if shutil.which(file.name) == str(file):
        return file.name
    if file.is_absolute() and file.is_relative_to(here := Path(os.curdir).absolute()):
        file = file.relative_to(here)
    return shlex.quote(str(file))
