"""Parts of a benchmark within a budget of time: in order of importance, each with a cap.

The parts run in a process of their own, which reports what it has found as lines of JSON, one
after each measurement. So nothing that was found is lost where a part takes too long, crashes or
hangs: the process is started again for the parts that are left.
"""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TextIO

GRACE = 15.0  # seconds that a part may overrun its cap, in a call that no signal interrupts
LEAST = 4.0  # seconds without which a part is not begun
_POLL = 0.1  # seconds between looks at what a process has reported
Report = Callable[[str, Any], None]


class Part(NamedTuple):
    """A part and the most seconds that it may take."""

    name: str
    cap: float


class CutOffError(Exception):
    """A part has taken its time."""


# ---- in the process that measures ----------------------------------------------------------------


@contextlib.contextmanager
def capped(seconds: float) -> Iterator[None]:
    """Raise `CutOffError` in a `with` block that takes longer, between two lines of Python."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise CutOffError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_parts(
    parts: Sequence[Part],
    work: Callable[[str, Report], None],
    seconds: float,
    out: TextIO,
    broken: Callable[[], bool] = lambda: False,
) -> None:
    """Do parts one after the other, and write a line about each event.

    Args:
        parts: in order of importance.
        work: does the part of a name, and reports every number under a name of its own.
        seconds: for all of them; parts without time are skipped, which is an event too.
        out: where lines go.
        broken: whether this process can do no more, asked after a part that failed; the parts that
            are left then have no event.
    """
    end = time.monotonic() + seconds

    def write(part: str, event: str, **more: Any) -> None:
        out.write(json.dumps({"part": part, "event": event, **more}) + "\n")
        out.flush()

    for name, cap in parts:
        left = end - time.monotonic()
        if left < LEAST:
            write(name, "skipped", why="no time was left")
            continue
        write(name, "begun", cap=cap)
        begin, event, why = time.monotonic(), "done", ""
        try:
            with capped(min(cap, left)):
                work(name, lambda key, value, part=name: write(part, "found", key=key, value=value))  # type: ignore[misc]
        except CutOffError:
            event, why = "cut off", f"it was given {min(cap, left):.0f} s"
        except Exception as error:
            traceback.print_exc()
            event, why = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        write(name, event, why=why, seconds=time.monotonic() - begin)
        if event == "failed" and broken():
            return


# ---- in the process that waits for it ------------------------------------------------------------


class Found:
    """What processes have reported so far.

    Attributes:
        parts: for each part "status" ("done", "cut off", "skipped", "failed"), "why" if it is not
            done, "seconds", and what it found by name.
        current: the part under way, and when it began; None between parts.
    """

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, Any]] = {}
        self.current: tuple[str, float, float] | None = None  # with its cap

    def add(self, line: str) -> None:
        """Take a line of `run_parts`."""
        told = json.loads(line)
        part = self.parts.setdefault(told["part"], {"status": "begun", "found": {}})
        event = told["event"]
        if event == "found":
            part["found"][told["key"]] = told["value"]
        elif event == "begun":
            self.current = told["part"], time.monotonic(), told["cap"]
        else:
            self.current = None
            part["status"] = event
            part |= {key: told[key] for key in ("why", "seconds") if told.get(key)}

    def fail(self, why: str) -> None:
        """Note that the process ended within the current part."""
        if self.current:
            name, begun, _ = self.current
            self.parts[name] |= {"status": "failed", "why": why, "seconds": _since(begun)}
            self.current = None


def _since(begun: float) -> float:
    return time.monotonic() - begun


def measure_parts(
    command: Callable[[Sequence[Part], float], Sequence[str]],
    parts: Sequence[Part],
    seconds: float,
    variables: Mapping[str, str],
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, Any]]:
    """Have parts measured by processes, within a number of seconds in all.

    Args:
        command: that does parts within some seconds, and prints the lines of `run_parts`.
        parts: in order of importance.
        seconds: for everything, the starts of processes included.
        variables: of the environment, besides those of this process.
        say: is told of every event.

    Returns:
        `Found.parts`; every part is in it.
    """
    end, found, left = time.monotonic() + seconds, Found(), list(parts)
    while left and end - time.monotonic() > LEAST:
        wanted = command(left, end - time.monotonic())
        # A process without a report on any part would be started for ever.
        if not _watch(wanted, end, variables, found, say):
            break
        left = [part for part in left if part.name not in found.parts]
    for part in left:
        found.parts.setdefault(
            part.name, {"status": "skipped", "why": "no time was left", "found": {}}
        )
    return found.parts


def _watch(
    command: Sequence[str], end: float, variables: Mapping[str, str], found: Found,
    say: Callable[[str], None],
) -> bool:  # fmt: skip
    """Start a process and read what it reports until it ends; return whether it reported."""
    reported = False
    with tempfile.TemporaryDirectory() as folder:
        lines, errors = Path(folder) / "lines", Path(folder) / "errors"
        with lines.open("w") as out, errors.open("w") as err, lines.open() as reader:
            process = subprocess.Popen(
                command, stdout=out, stderr=err, env={**os.environ, **variables}
            )
            pending = ""
            while True:
                ended = process.poll() is not None  # before the last look
                *whole, pending = (pending + reader.read()).split("\n")
                for line in filter(lambda text: text.startswith("{"), whole):
                    reported = True
                    found.add(line)
                    say(line)
                if ended:
                    break
                if hung := _hung(found, end):
                    process.kill()
                    process.wait()
                    found.fail(hung)
                    return reported
                time.sleep(_POLL)
        told = errors.read_text(errors="replace").strip().splitlines()[-3:]
        code = process.returncode
        if code or not reported:
            found.fail(f"the process ended with code {code}: {' / '.join(told)[-400:]}")
            if not reported:
                say(json.dumps({"event": "ended", "code": code, "stderr": told}))
    return reported


def _hung(found: Found, end: float) -> str:
    """Return why a process is to be stopped; "" while it is not."""
    if time.monotonic() > end:
        return "the time for all parts is over"
    if found.current and _since(found.current[1]) > found.current[2] + GRACE:
        return f"it hung for more than {found.current[2] + GRACE:.0f} s"
    return ""
