"""One run of a sweep, and what became of it; nothing heavy is imported to read them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["done", "failed", "stopped"]


@dataclass(frozen=True)
class Job:
    """One run of a sweep; it can be sent to another process or machine.

    Attributes:
        key: hash of the resolved settings.
        shared: hash of what other runs share with it: stream, model, and how images are encoded.
        name: for the screen, as "split-digits clipfit:lr=0.001 seed 0".
        label: the method and the settings of it that vary, for tables.
        settings: fields of `RunConfig`.
        output: folder of all run folders.
        encodes: whether image features of a frozen tower can be prepared for it; None: nothing can.
        threads: cores that it may use.
    """

    key: str
    shared: str
    name: str
    label: str
    settings: Mapping[str, Any]
    output: Path
    encodes: bool | None = None
    threads: int = 1


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        state: "done", "failed", or "stopped" by a signal.
        folder: name of the run's folder, if it has one.
        text: what to show: accuracy, or what is wrong.
        seconds: from start to end.
        archive: the run's folder as a tar file, from a machine without this file system.
    """

    state: State
    folder: str = ""
    text: str = ""
    seconds: float = 0.0
    archive: bytes | None = None
