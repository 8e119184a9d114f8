"""A run that was killed goes on, and ends as it would have, bit for bit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cl_clipfit.checkpoints import Checkpoints
from cl_clipfit.cli import main
from cl_clipfit.registry import Registry

METHODS = [e.name for e in Registry().entries("strategies") if e.name != "zero-shot"]
SMALL = ["--shots", "3", "--limit", "6", "--epochs", "2", "--tasks", "3"]
TIMES = {"timings", "peak_memory_bytes", "environment"}


class Killed(BaseException):
    """Stands for a kill: nothing of the run's own code runs after it but clean-up."""


def run(folder: Path, *more: str) -> int:
    return main([*SMALL, "--output", str(folder), "--quiet", *more])


def artefacts(output: Path) -> dict[str, Any]:
    """Return what is in all run folders, but for times and peaks of memory."""
    found: dict[str, Any] = {}
    for file in sorted(p for p in output.rglob("*") if p.is_file()):
        name = str(file.relative_to(output))
        if file.name == "MANIFEST.sha256" or file.name.endswith("comparison.csv"):
            continue  # with the hash, or the seconds, of what takes another time
        data = file.read_bytes()
        found[name] = timeless(json.loads(data)) if file.name == "result.json" else data
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k: timeless(v) for k, v in value.items()
            if k not in TIMES and not k.endswith("seconds")
        }  # fmt: skip
    return [timeless(v) for v in value] if isinstance(value, list) else value


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function: kill the process once so many checkpoints are written, or before."""
    write, calls = Checkpoints.save, [0]

    def arm(number: int, before: bool = False) -> None:
        calls[0] = 0

        def save(self: Checkpoints, state: dict[str, Any]) -> None:
            calls[0] += 1
            if calls[0] == number and before:
                raise Killed
            write(self, state)
            if calls[0] == number:
                raise Killed

        monkeypatch.setattr(Checkpoints, "save", save)

    yield arm
    monkeypatch.undo()


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_ends_as_an_unbroken_one(method: str, tmp_path: Path, kill_at: Any) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(whole, "--strategy", method) == 0
    kills = 0
    while True:  # each time three checkpoints further, in the midst of an epoch's end
        kill_at(3)
        try:
            assert run(broken, "--strategy", method) == 0
            break
        except Killed:
            kills += 1
    assert kills >= 3
    assert artefacts(broken) == artefacts(whole)
    assert not list(broken.rglob("checkpoints"))
