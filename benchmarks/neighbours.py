"""Time runs that share a machine, and one alone, as threads that wait spin or sleep.

    python -m benchmarks.neighbours --runs 2 --repeats 3 --json

Every run is a process that trains CLIPFit on split-digits. `ours` is what `run.py` sets, `spinning`
the default of GNU OpenMP. For each, `together/alone` is the time of N runs at once, as a multiple
of N times that of one: it should stay below 1.3. `ours/spinning` compares runs that are alone:
below 1.02.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import timing
from cl_clipfit.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
JOB = ("run.py", "--strategy", "clipfit", "--tasks", "2", "--validation", "0.2", "--quiet")
SPINS_BY_DEFAULT = {"GOMP_SPINCOUNT": "300000"}  # of libgomp where no wait policy is set
WAYS: Mapping[str, Mapping[str, str]] = {"ours": {}, "spinning": SPINS_BY_DEFAULT}


def seconds(runs: int, epochs: int, variables: Mapping[str, str]) -> float:
    """Return how long runs take that start together.

    Raises:
        UserError: one of them fails.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_"))}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as processes:
        begin = time.perf_counter()
        started = [
            processes.enter_context(
                subprocess.Popen(
                    [sys.executable, *JOB, "--epochs", str(epochs), "--output", f"{folder}/{run}"],
                    cwd=ROOT, env={**kept, **variables}, stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE, text=True,
                )
            )
            for run in range(runs)
        ]  # fmt: skip
        errors = [process.communicate()[1] for process in started]
        took = time.perf_counter() - begin
    for process, error in zip(started, errors, strict=True):
        if process.returncode:
            raise UserError(f"a run failed with exit code {process.returncode}: {error}")
    return took


def measure(runs: int, epochs: int, repeats: int) -> dict[str, Any]:
    """Time all ways in turns: medians in seconds, and their ratios."""
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        for way, variables in WAYS.items():
            for name, count in (("alone", 1), ("together", runs)):
                took = seconds(count, epochs, variables)
                times.setdefault(f"{way}, {name}", []).append(took)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        f"{way}: together/alone": medians[f"{way}, together"] / medians[f"{way}, alone"] / runs
        for way in WAYS
    }
    ratios["alone: ours/spinning"] = medians["ours, alone"] / medians["spinning, alone"]
    return {"runs": runs, "seconds": medians, "ratios": ratios}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the medians and their ratios."""
    parser = argparse.ArgumentParser(prog="benchmarks.neighbours", description=__doc__)
    parser.add_argument("--runs", type=int, default=2, help="runs at once")
    parser.add_argument("--epochs", type=int, default=10, help="passes over each of two tasks")
    timing.add_options(parser, repeats=3)
    given = timing.parse(parser, arguments, "runs", "epochs")
    with timing.one_line(parser):
        report = measure(given.runs, given.epochs, given.repeats)
    timing.show({**report, "machine": timing.machine()}, given.json)


if __name__ == "__main__":
    main()
