"""The one exception that reaches the user as a sentence, and help in writing the sentence."""

import difflib
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """Bad input: one line that says what is wrong, where, and what to do. Exit code 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence that helps with an unknown name: the nearest one, or all of them."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Known: {', '.join(options)}." if options else "There is none."


def is_file(path: str | Path, or_folder: bool = False) -> bool:
    """Tell whether a file (or folder) exists; a name no file can have is no error."""
    try:
        return Path(path).is_file() or (or_folder and Path(path).is_dir())
    except (OSError, ValueError):  # too long, or with a null character
        return False
