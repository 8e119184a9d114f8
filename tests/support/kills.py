"""Shared pieces."""

import signal
from typing import Any

import pytest

from cl_clipfit.training.strategy import CLIPStrategy


class Killed(BaseException):
    """Stands for a kill: nothing of the run's own code runs after it but clean-up."""


_UPDATE = CLIPStrategy._before_update


def stop_in_step(patch: pytest.MonkeyPatch, number: int) -> None:
    """Let SIGTERM come in the nth step from now on; 0: in none."""
    calls = [0]

    def counted(self: CLIPStrategy, **kwargs: Any) -> None:
        calls[0] += 1
        if calls[0] == number:
            signal.raise_signal(signal.SIGTERM)
        _UPDATE(self, **kwargs)

    patch.setattr(CLIPStrategy, "_before_update", counted)
