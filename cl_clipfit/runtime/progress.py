"""What a run reports while it trains, whoever shows it."""

from typing import Protocol

from cl_clipfit.training.strategy import CLIPStrategy


class Display(Protocol):
    """What a run tells while it goes on; see `report.display`."""

    def note(self, text: str) -> None:
        """Say one line."""

    def warn(self, text: str) -> None:
        """Say one line that matters."""

    def start_task(self, task: int, tasks: int, epochs: int, steps: int) -> None:
        """Begin a task (1-based) of `steps` optimiser steps."""

    def step(self, strategy: CLIPStrategy) -> None:
        """Follow one optimiser step."""

    def end_task(self, task: int, tasks: int, accuracy: float | None, seconds: float) -> None:
        """End a task: accuracy over all classes seen in percent, seconds of training."""
