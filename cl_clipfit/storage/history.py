"""`history.jsonl`: what a run reports while it trains, a line of JSON for each event.

Lines are appended, and on the disk before the checkpoint that counts them: a resumed run cuts the
file where its checkpoint was written, and writes the lines that follow again.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cl_clipfit.errors import UserError
from cl_clipfit.storage.files import read_bytes, writing
from cl_clipfit.storage.run_folder import HISTORY


class HistoryFile:
    """The history of a run, for appending.

    Args:
        run: folder of the run.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / HISTORY
        self._waiting: list[str] = []

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line, which `flush` writes."""
        self._waiting.append(json.dumps(line, allow_nan=False) + "\n")

    def flush(self) -> int:
        """Write the waiting lines to the disk; return the size of the file in bytes.

        Raises:
            UserError: the file cannot be written.
        """
        with writing(self.path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            handle = os.open(self.path, flags, 0o666)
            with os.fdopen(handle, "ab") as file:
                if self._waiting:
                    file.write("".join(self._waiting).encode())
                    file.flush()
                    os.fsync(handle)
                self._waiting.clear()
                return os.fstat(handle).st_size

    def cut(self, size: int) -> list[dict[str, Any]]:
        """Cut the file to the size that a checkpoint counts; return the lines that are left.

        A file that is shorter stays as it is: the history is for reading, and nothing that is
        trained depends on it.
        """
        if self.path.is_symlink():
            raise UserError(f"{self.path} is a symbolic link: replace it by the file itself")
        if not self.path.is_file():
            return []
        with writing(self.path):
            if self.path.stat().st_size > size:
                os.truncate(self.path, size)
        return _parse(self.path)


def read_history(run: Path | str) -> list[dict[str, Any]]:
    """Return the history of a run, finished or not: a dictionary for each line.

    `event` says what a line is about: "step" (a step of the optimiser; about a hundred of each
    task), "epoch" (means over its steps) or "task" (after a task; 0 is before training).

    Args:
        run: its folder.

    Returns:
        the lines; none if the run has none (an older version).

    Raises:
        UserError: a line is not one that a run writes.

    Example:
        >>> from cl_clipfit import read_history
        >>> [line["loss"] for line in read_history("runs/RUN") if line["event"] == "epoch"]
        ... # doctest: +SKIP
    """
    file = Path(run) / HISTORY
    return _parse(file) if file.is_file() else []


def _parse(file: Path) -> list[dict[str, Any]]:
    lines = []
    for number, text in enumerate(read_bytes(file).split(b"\n"), 1):
        if not text:
            continue
        try:
            line = json.loads(text)
            if not isinstance(line, dict) or "event" not in line:
                raise ValueError("no event")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}, line {number} is not what a run writes: remove it") from error
        lines.append(line)
    return lines
