"""A killed or stopped run is resumed, and ends as an uninterrupted one, bit for bit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.job import artefacts
from cl_clipfit.cli.app import main
from cl_clipfit.registry import Registry
from cl_clipfit.storage.checkpoints import Checkpoints
from tests.support.kills import Killed
from tests.support.methods import one_of_each_kind
from tests.support.tiny import TINY

CLASSES = {e.name: e.strategy_class() for e in Registry().entries("strategies")}
# That the state of every method is restored: tests/strategies/test_every_strategy.py.
METHODS = one_of_each_kind(
    {n: cls for n, cls in CLASSES.items() if cls.learning == "gradient" and cls.resumes}
)
SMALL = [*TINY, "--epochs", "2", "--tasks", "2", "--batch-size", "12"]  # 2 steps an epoch


def run(folder: Path, *more: str) -> int:
    return main([*SMALL, "--output", str(folder), "--quiet", *more])


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function: kill the process once so many checkpoints are written."""
    write, calls = Checkpoints.save, [0]

    def arm(number: int) -> None:
        calls[0] = 0

        def save(self: Checkpoints, state: dict[str, Any]) -> None:
            calls[0] += 1
            write(self, state)
            if calls[0] == number:
                raise Killed

        monkeypatch.setattr(Checkpoints, "save", save)

    yield arm
    monkeypatch.undo()


@pytest.mark.parametrize("method", METHODS)
def test_a_broken_run_ends_as_an_unbroken_one(
    method: str, tmp_path: Path, kill_at: Any, stop_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(whole, "--strategy", method) == 0
    kills = stops = 0
    # In turns killed and stopped: after the first epoch, in the first epoch of task 2, after its
    # last one; a second stage has checkpoints and steps too, and is broken as well.
    while True:
        _ = kill_at(2) if kills == stops else stop_at(3)
        try:
            if (code := run(broken, "--strategy", method)) == 0:
                break
            assert code == 143
            stops += 1
        except Killed:
            kills += 1
        monkeypatch.undo()
    assert kills >= 2
    assert stops >= 1
    assert artefacts(broken) == artefacts(whole)
    assert not list(broken.rglob("checkpoints"))
