"""What the engine reports while it works; a screen, a log or a program may listen."""

from typing import Any, Protocol


class Progress(Protocol):
    """Told how a command goes; `report.display.ConsoleDisplay` shows it, `Silent` ignores it."""

    def note(self, text: str) -> None:
        """Report one line."""

    def warn(self, text: str) -> None:
        """Report one line that matters."""

    def transfer(self, label: str, done: int, total: int | None) -> None:
        """Follow bytes, of a download for example."""

    def count(self, label: str, done: int, total: int) -> None:
        """Follow a number of images."""

    def start_run(self, label: str) -> None:
        """Name the run that the next tasks belong to."""

    def start_task(self, task: int, tasks: int, epochs: int, steps: int) -> None:
        """Begin a task (1-based) of `steps` optimiser steps."""

    def step(self, strategy: Any) -> None:
        """Follow one optimiser step; reading the strategy's loss waits for the device."""

    def end_task(self, task: int, tasks: int, accuracy: float | None, seconds: float) -> None:
        """End a task: accuracy over all classes seen in percent, seconds of training."""

    def stop(self) -> None:
        """End whatever is followed at the moment."""


class Silent:
    """Ignores all progress; warnings are in the results anyway."""

    def note(self, text: str) -> None:
        """Ignore it."""

    def warn(self, text: str) -> None:
        """Ignore it."""

    def transfer(self, label: str, done: int, total: int | None) -> None:
        """Ignore it."""

    def count(self, label: str, done: int, total: int) -> None:
        """Ignore it."""

    def start_run(self, label: str) -> None:
        """Ignore it."""

    def start_task(self, task: int, tasks: int, epochs: int, steps: int) -> None:
        """Ignore it."""

    def step(self, strategy: Any) -> None:
        """Ignore it."""

    def end_task(self, task: int, tasks: int, accuracy: float | None, seconds: float) -> None:
        """Ignore it."""

    def stop(self) -> None:
        """Ignore it."""
