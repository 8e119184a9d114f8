"""What the engine reports while it works; a screen, a log or a program may listen."""

from collections.abc import Sequence
from typing import Any


class Progress:
    """Receives progress, notes and warnings of a command, and ignores them.

    A subclass overrides what it wants to follow; `report.display.ConsoleDisplay` shows all of it.
    """

    def note(self, text: str) -> None:
        """Report one line."""

    def warn(self, text: str) -> None:
        """Report one line that matters."""

    def transfer(self, label: str, done: int, total: int | None) -> None:
        """Follow bytes, of a download for example."""

    def count(self, label: str, done: int, total: int) -> None:
        """Follow a number of images."""

    def start_run(self, label: str, stream: str = "") -> None:
        """Name the run that the next tasks belong to, and its stream."""

    def start_task(self, task: int, tasks: int, epochs: int, steps: int) -> None:
        """Begin a task (1-based) of `steps` optimiser steps."""

    def step(self, strategy: Any) -> None:
        """Follow one optimiser step.

        The strategy's `read_terms()` returns its loss and the terms of it, and waits for the
        device. `terms` are the same as tensors, valid until the next step.
        """

    def row(self, task: int, row: Sequence[float | None]) -> None:
        """Follow the table of accuracies: on every task, in percent, after a task (1-based).

        Each is over the classes seen, and None for a task not yet learned.
        """

    def end_task(self, task: int, tasks: int, accuracy: float | None, seconds: float) -> None:
        """End a task: accuracy over all classes seen in percent, seconds of training."""

    def stop(self) -> None:
        """End whatever is followed at the moment."""
