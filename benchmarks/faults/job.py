"""The job under test, processes that do it, and what it must leave."""

import csv
import io
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from cl_clipfit.cli.app import main
from cl_clipfit.commands.verify import verify_run
from cl_clipfit.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = (
    "--scenario", "tiny-stream", "--plugin", str(ROOT / "benchmarks/faults/tiny_stream.py"),
    "--lr", "0.01", "--limit", "4", "--batch-size", "4", "--device", "cpu",
)  # fmt: skip
SIZE, SMALL = ("--tasks", "3", "--epochs", "2"), ("--tasks", "2", "--epochs", "1")
STRATEGIES = ("clipfit", "mergetune:landscape=off,merge_epochs=2")
TIMES = {"timings", "peak_memory_bytes", "environment"}  # of result.json: no two runs have the same
DEADLINE_SECONDS = 300.0  # after which a job of seconds counts as hanging
HUNG, CRASHED = 124, 70
_LOOK_SECONDS = 0.005


@dataclass
class Campaign:
    """What is counted.

    Attributes:
        trials: how many there were.
        losses: a line for each that went wrong.
        counts: further numbers, by name.
        seconds: how long all took.
    """

    trials: int = 0
    losses: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def count(self, name: str, number: int = 1) -> None:
        """Add to a further number."""
        self.counts[name] = self.counts.get(name, 0) + number

    def end_trial(self, problem: str = "") -> None:
        """Count a trial, and what went wrong in it."""
        self.trials += 1
        if problem:
            self.losses.append(problem)

    def as_json(self) -> dict[str, Any]:
        """Return all of it."""
        return {
            "trials": self.trials, "losses": len(self.losses), **self.counts,
            "seconds": round(self.seconds, 1), "examples": self.losses[:5],
        }  # fmt: skip


class Place:
    """A folder of one trial: what the job writes, the cache of data, and what processes print."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output, self.cache = folder, folder / "output", folder / "cache"
        folder.mkdir(parents=True)

    def log(self, name: str = "log") -> Path:
        """Return the file that a process prints to."""
        return self.folder / name

    def said(self, name: str = "log") -> str:
        """Return what it printed."""
        return self.log(name).read_text(encoding="utf-8", errors="replace")

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.folder)


def run_job(place: Place, strategy: str, *more: str, size: Sequence[str] = SIZE) -> int:
    """Run the command in this process; return its exit code."""
    os.environ["CL_CLIPFIT_DATA"] = str(place.cache)
    return main([*OPTIONS, *size, "--strategy", strategy, "--output", str(place.output), *more])


def start(work: Callable[[], int], log: Path) -> int:
    """Fork a process that does some work and prints to a file; return its id.

    All modules are imported by now, which is most of the time that a command of seconds takes.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        _work(work, log)
    return pid


def _work(work: Callable[[], int], log: Path) -> NoReturn:
    code = CRASHED
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        code = work()
    except BaseException:  # which would continue in the parent's code
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def wait(
    pid: int,
    kill_after: float | None = None,
    number: int = signal.SIGKILL,
    ready: Callable[[], bool] | None = None,
) -> int:
    """Wait for a process, and perhaps send it a signal.

    Args:
        pid: of a child.
        kill_after: seconds until the signal; None lets it end, within `DEADLINE_SECONDS`.
        number: of the signal; after any but SIGKILL it ends by itself, within the same time.
        ready: tells whether what the seconds are counted from has happened; default the start.

    Returns:
        its exit code; minus the signal's number where a signal ended it; `HUNG`.
    """
    limit = time.monotonic() + DEADLINE_SECONDS
    end = limit if kill_after is None else time.monotonic() + kill_after
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if ready is not None and kill_after is not None:
            if ready():
                ready = None
            elif time.monotonic() < limit:
                end = time.monotonic() + kill_after
        if time.monotonic() >= end and kill_after is not None and number != signal.SIGKILL:
            os.kill(pid, number)
            return wait(pid)
        if time.monotonic() >= end:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            return HUNG if kill_after is None else os.waitstatus_to_exitcode(status)
        time.sleep(_LOOK_SECONDS)


def artefacts(output: Path) -> dict[str, Any]:
    """Return what is in an output folder, by name, without times and peaks of memory.

    Left out are the manifests, which hold hashes of such, the reports, which show them, and files
    whose names begin with ".", which belong to no run: `left_over` counts them.
    """
    found: dict[str, Any] = {}
    for file in sorted(path for path in output.rglob("*") if path.is_file()):
        timed = file.name == "MANIFEST.sha256" or file.name.endswith("report.html")
        if timed or file.name.startswith("."):
            continue
        found[file.relative_to(output).as_posix()] = content(file)
    return found


def content(file: Path) -> Any:
    """Return what is in a file, without times and peaks of memory."""
    data = file.read_bytes()
    if file.name == "result.json":
        return timeless(json.loads(data))
    if file.name == "history.jsonl":
        return [timeless(json.loads(line)) for line in data.splitlines()]
    if file.name.endswith("comparison.csv"):
        rows = csv.DictReader(io.StringIO(data.decode()))
        return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]
    return data


def timeless(value: Any) -> Any:
    """Return JSON without times, peaks of memory and the environment."""
    if isinstance(value, dict):
        return {
            k: timeless(v) for k, v in value.items()
            if k not in TIMES and not k.endswith("seconds")
        }  # fmt: skip
    return [timeless(v) for v in value] if isinstance(value, list) else value


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Name what differs; "" where nothing does."""
    names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    return f"differs from the uninterrupted run in {', '.join(names[:3])}" if names else ""


def left_over(output: Path) -> int:
    """Count files being written, and locks, of processes that are gone."""
    return sum(path.name.startswith(".") for path in output.rglob("*") if path.is_file())


def verified(run: Path) -> str:
    """Verify a run as `run.py verify` does; return its refusal, or "" where all is well.

    Raises:
        Exception: whatever `verify` must not raise.
    """
    console = Console(file=io.StringIO())
    try:
        verify_run(run, console, console)
    except UserError as error:
        return str(error)
    return ""


def run_folders(output: Path) -> list[Path]:
    """Return the folders of runs."""
    return sorted(path for path in output.iterdir() if path.is_dir())


def problem(place: Place, code: int, wanted: dict[str, Any], name: str = "log") -> str:
    """Say what is wrong after the command has ended; "" where nothing is."""
    if code:
        last = (place.said(name).strip().splitlines() or ["nothing"])[-1]
        return f"{place.folder.name}: exit code {code}: {last}"
    if text := difference(artefacts(place.output), wanted):
        return f"{place.folder.name}: {text}"
    for run in run_folders(place.output):
        if text := verified(run):
            return f"{place.folder.name}: {text}"
    return ""


class Bench:
    """Folders for all trials, and the uninterrupted runs that they are compared with.

    Args:
        folder: of all files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._whole: dict[Any, tuple[Place, dict[str, Any], float]] = {}

    @contextmanager
    def place(self, name: str, campaign: Campaign) -> Iterator[Place]:
        """Give a folder for a trial; it stays where the trial lost something."""
        place, before = Place(self.folder / name), len(campaign.losses)
        yield place
        if len(campaign.losses) == before:
            place.remove()

    def unbroken(
        self, strategy: str, size: Sequence[str] = SIZE
    ) -> tuple[Place, dict[str, Any], float]:
        """Return where an uninterrupted run is, what it left, and how many seconds it took.

        Raises:
            UserError: it fails.
        """
        key = strategy, size
        if key not in self._whole:
            place = Place(self.folder / f"whole-{len(self._whole)}")
            started = time.monotonic()
            work = partial(run_job, place, strategy, "--quiet", size=size)
            code = wait(start(work, place.log()))
            seconds = time.monotonic() - started
            if code:
                raise UserError(
                    f"the uninterrupted run fails: {place.said().strip().splitlines()[-1:]}"
                )
            self._whole[key] = place, artefacts(place.output), seconds
        return self._whole[key]

    def training_seconds(self, strategy: str) -> float:
        """Return how long an uninterrupted run trains, evaluates and merges."""
        (run,) = run_folders(self.unbroken(strategy)[0].output)
        timings = json.loads((run / "result.json").read_bytes())["timings"]
        return float(sum(sum(timings[f"{part}_seconds"]) for part in ("train", "measure", "eval")))
