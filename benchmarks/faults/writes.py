"""Every call that writes fails in turn, as on a full, a broken or a read-only disk."""

import builtins
import errno
import io
import json
import os
import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.job import (
    SMALL,
    STRATEGIES,
    Bench,
    Campaign,
    Place,
    content,
    problem,
    run_job,
    start,
    wait,
)
from cl_clipfit.errors import UserError
from cl_clipfit.storage.files import sha256, unseal
from cl_clipfit.storage.manifest import CHECKPOINTS

# A broken disk fails once; a full one, or one that became read-only, fails from then on. What is
# full lets files be removed.
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EACCES": errno.EACCES}
REMOVALS = ("unlink", "remove", "rmdir")
_CALLS = ("mkdir", "replace", "rename", "link", "chmod", *REMOVALS)
_HANDLE_CALLS = ("write", "fsync", "ftruncate")
ALL_FROM = 200  # trials from which on every call fails with every error


class Disk:
    """Counts calls that write below some folders, and lets one of them fail.

    Args:
        folders: where.
        fails: number of the call, from 1; 0: none.
        name: of the error.
        journal: file with a line for every call.
    """

    def __init__(self, folders: list[Path], fails: int, name: str, journal: Path) -> None:
        self.folders = tuple(f"{folder}" for folder in folders)
        self.fails, self.name, self.calls = fails, name, 0
        self.handles: set[int] = set()
        self.journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._write = os.write

    def call(self, what: str, path: Any) -> None:
        """Count a call, and raise OSError where it has to fail."""
        self.calls += 1
        self._write(self.journal, f"{what} {path}\n".encode())
        once = self.name == "EIO"
        due = self.calls == self.fails if once else 0 < self.fails <= self.calls
        if due and not (self.name == "ENOSPC" and what in REMOVALS):
            code = ERRORS[self.name]
            raise OSError(code, os.strerror(code), str(path))

    def holds(self, path: Any) -> bool:
        """Return whether a path is below the folders."""
        return isinstance(path, str | os.PathLike) and str(path).startswith(self.folders)

    def install(self) -> None:
        """Put it between this process and the system."""
        for name in _CALLS:
            setattr(os, name, self._by_path(name, getattr(os, name)))
        for name in _HANDLE_CALLS:
            setattr(os, name, self._by_handle(name, getattr(os, name)))
        self._install_open()

    def _by_path(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(path: Any, *more: Any, **options: Any) -> Any:
            if self.holds(path):
                self.call(name, path)
            return real(path, *more, **options)

        return called

    def _by_handle(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(handle: Any, *more: Any) -> Any:
            if handle in self.handles:
                self.call(name, handle)
            return real(handle, *more)

        return called

    def _install_open(self) -> None:
        disk, os_open, os_close, io_open = self, os.open, os.close, io.open

        class Raw(io.FileIO):
            """A file whose writes may fail."""

            def write(self, data: Any, /) -> int:
                disk.call("write", self.name)
                return super().write(data)

            def close(self) -> None:
                if not self.closed and self.closefd:
                    disk.handles.discard(self.fileno())
                super().close()

        def opened(path: Any, flags: int, *more: Any, **options: Any) -> int:
            if not disk.holds(path):
                return os_open(path, flags, *more, **options)
            disk.call("open", path)
            handle = os_open(path, flags, *more, **options)
            disk.handles.add(handle)
            return handle

        def closed(handle: int) -> None:
            disk.handles.discard(handle)
            os_close(handle)

        def opened_file(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
            if not set(mode) & set("wax+") or not (disk.holds(file) or file in disk.handles):
                return io_open(file, mode, *more, **options)
            if disk.holds(file):
                disk.call("open", file)
            raw: Any = Raw(file, mode.replace("b", "").replace("t", ""))
            disk.handles.add(raw.fileno())
            buffered = io.BufferedWriter(raw)
            encoding = options.get("encoding")
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding=encoding)

        for module, name, value in (
            (os, "open", opened), (os, "close", closed),
            (io, "open", opened_file), (builtins, "open", opened_file),
        ):  # fmt: skip
            setattr(module, name, value)


def fail_writes(bench: Bench, campaign: Campaign, trials: int, draws: random.Random) -> None:
    """Let calls fail, look at what is there, and run the same command again.

    Args:
        bench: where.
        campaign: what is counted.
        trials: from `ALL_FROM` on all calls fail with all errors; else their share of these.
        draws: of that share.
    """
    strategy = STRATEGIES[0]
    _, wanted, _ = bench.unbroken(strategy, SMALL)
    counted = Place(bench.folder / "counted")
    code = wait(start(lambda: _with_disk(counted, strategy, 0, "EIO"), counted.log()))
    if text := problem(counted, code, wanted):
        raise UserError(f"the run under a disk that counts fails: {text}")
    calls = counted.said("calls").splitlines()
    counted.remove()
    cases = [(number, name) for number in range(1, len(calls) + 1) for name in ERRORS]
    campaign.count("calls", len(calls))
    if trials < ALL_FROM:
        cases = sorted(draws.sample(cases, max(1, len(cases) * trials // ALL_FROM)))
    for number, name in cases:
        with bench.place(f"write-{number}-{name}", campaign) as place:
            what = f"{name} at call {number}, {calls[number - 1].split()[0]}"
            text = _fail(place, strategy, number, name, wanted, campaign)
            campaign.end_trial(f"{what}: {text}" if text else "")


def _with_disk(place: Place, strategy: str, number: int, name: str) -> int:
    Disk([place.output, place.cache], number, name, place.log("calls")).install()
    return run_job(place, strategy, "--quiet", size=SMALL)


def _fail(
    place: Place, strategy: str, number: int, name: str, wanted: dict[str, Any], campaign: Campaign
) -> str:
    code = wait(start(lambda: _with_disk(place, strategy, number, name), place.log()))
    said = place.said()
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    campaign.count("completed_all_the_same" if code == 0 else "ended_with_a_line", code in (0, 2))
    if "Traceback" in said or code not in (0, 2) or len(errors) != (code == 2):
        return f"exit code {code}: {_origin(said)}"
    if text := _not_whole(place.output, wanted):
        return text
    # A run is complete without a figure that it says is missing.
    missing = set(re.findall(r"the figure (\S+) is missing", said)) if code == 0 else set()
    campaign.count("completed_without_a_figure", bool(missing))
    again = partial(run_job, place, strategy, "--quiet", size=SMALL)
    code = wait(start(again, place.log("again")))
    expected = {
        name: data for name, data in wanted.items()
        if Path(name).stem not in missing or (place.output / name).exists()
    }  # fmt: skip
    return problem(place, code, expected, "again")


def _origin(said: str) -> str:
    """Return the last line that was printed, and the last line of our code in a traceback."""
    ours = [line.strip() for line in said.splitlines() if "/cl_clipfit/" in line]
    return f"{said.strip().splitlines()[-1]} {ours[-1] if ours else ''}"


def _is_history(data: bytes) -> bool:
    """Return whether these are lines of JSON; the last one may be cut off."""
    try:
        return all(json.loads(line) for line in data.split(b"\n")[:-1])
    except ValueError:
        return False


def _not_whole(output: Path, wanted: dict[str, Any]) -> str:
    """Name a file that is neither what an uninterrupted run writes, nor whole on its way there."""
    for file in sorted(path for path in output.rglob("*") if path.is_file()):
        if file.name.startswith(".") or file.name == "MANIFEST.sha256":
            continue
        if file.parent.name == CHECKPOINTS:
            whole = sha256(file.read_bytes()) in file.name
        elif file.name.endswith("report.html"):  # shows times
            whole = file.read_bytes().rstrip().endswith(b"</html>")
        elif file.name == "history.jsonl":  # grows; checkpoints say how much of it counts
            whole = _is_history(file.read_bytes())
        elif file.name == "index.json":  # of a bank that still grows
            try:
                unseal(file.read_bytes())
                whole = True
            except ValueError:
                whole = False
        else:
            try:
                whole = content(file) == wanted.get(file.relative_to(output).as_posix())
            except ValueError:
                whole = False
        if not whole:
            return f"{file.name} is not whole"
    return ""
