"""The screen of a sweep: a live table on a terminal, otherwise one plain line per run."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cl_clipfit.report.display import literal, one_line, say

_MOST_ROWS = 16  # runs shown at a time, the running ones first
_MARKS = {"done": "green", "failed": "red", "stopped": "yellow"}


@dataclass
class _Row:
    started: float
    text: str = ""
    state: str = "running"
    seconds: float = 0.0


@dataclass
class SweepBoard:
    """Shows which runs of a sweep are running, done and failed.

    Attributes:
        console: where to print.
        total: number of runs.
        skipped: how many of them were finished before.
        quiet: print nothing but failures.
    """

    console: Console
    total: int
    skipped: int = 0
    quiet: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    _rows: dict[str, _Row] = field(default_factory=dict)
    _live: Live | None = None
    _began: float = field(default_factory=time.monotonic)

    def __enter__(self) -> "SweepBoard":
        if self.console.is_terminal and not self.quiet:
            self._live = Live(
                get_renderable=self._table, console=self.console, transient=True,
                refresh_per_second=4,
            )  # fmt: skip
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def started(self, name: str, text: str = "") -> None:
        """Show that a run has begun."""
        self._rows[name] = _Row(time.monotonic(), text)

    def progress(self, name: str, text: str) -> None:
        """Show how far a run is."""
        self._rows.setdefault(name, _Row(time.monotonic())).text = text

    def ended(self, name: str, state: str, text: str, seconds: float) -> None:
        """Show what became of a run; the line of a run that failed stays on the screen.

        Args:
            name: of the run.
            state: "done", "failed" or "stopped".
            text: accuracy, or what is wrong.
            seconds: from start to end.
        """
        row = self._rows.pop(name, _Row(time.monotonic()))
        self.counts[state] += 1
        ended = self.skipped + self.counts.total()
        if self._live is not None and state == "done":
            self._rows[name] = _Row(row.started, text, state, seconds)  # at the end of the table
        elif state == "failed" or not self.quiet:
            what = text if state == "done" else f"{state}: {text}"
            say(self.console, f"{ended}/{self.total} {name}: {what} ({seconds:.1f} s)")

    def _table(self) -> Group:
        table = Table(box=None, padding=(0, 1), show_header=False)
        running = {n: r for n, r in self._rows.items() if r.state == "running"}
        ended = {n: r for n, r in self._rows.items() if r.state != "running"}
        shown = [*running.items()][:_MOST_ROWS]
        shown += [*reversed(ended.items())][: max(0, _MOST_ROWS - len(shown))]
        for name, row in shown:
            seconds = row.seconds or time.monotonic() - row.started
            table.add_row(
                Text(row.state, style=_MARKS.get(row.state, "cyan")),
                literal(name), literal(row.text), f"{seconds:.0f} s",
            )  # fmt: skip
        done = self.skipped + self.counts.total()
        states = ", ".join(f"{count} {state}" for state, count in self.counts.items())
        head = Text(
            one_line(
                f"{done}/{self.total} runs: {len(running)} running, {states or '0 done'},"
                f" {self.skipped} finished before, {time.monotonic() - self._began:.0f} s"
            )
        )
        return Group(head, ProgressBar(total=max(1, self.total), completed=done), table)
