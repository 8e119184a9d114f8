"""Progress on the console: a live view on a terminal, otherwise one plain line per task."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar

from cl_clipfit.errors import UserError, printable
from cl_clipfit.report.live import LiveView
from cl_clipfit.runtime.progress import Progress
from cl_clipfit.storage.run_folder import stream_name

if TYPE_CHECKING:
    from cl_clipfit.data.streams import Scenario

_REFRESH_SECONDS = 0.25
_LINE_SECONDS = 10


def one_line(text: str) -> str:
    """Return text on one line: a name with a line break must not forge a second line."""
    return printable(text).replace("\n", " ").replace("\t", " ")


def literal(text: str) -> str:
    """Return text that a console prints verbatim: no markup, no control sequences, one line."""
    return escape(one_line(text))


def say(out: Console, text: str) -> None:
    """Print a line verbatim, without wrapping."""
    out.print(one_line(text), highlight=False, markup=False, soft_wrap=True)


def describe_stream(scenario: "Scenario", scored: str = "test") -> str:
    """Return one line about a stream: data set, classes, images and tasks.

    Args:
        scenario: the stream.
        scored: what its test images are.
    """
    names = ", ".join(scenario.class_names[:3]) + ", ..." * (len(scenario.class_names) > 3)
    kind = "images" if scenario.train.images.dim() == 4 else "features of images"
    tasks = len(scenario.task_classes)
    return (
        f"{stream_name(scenario.name, scenario.origin)}: {len(scenario.class_names):,} classes"
        f" ({names}), {len(scenario.train):,} training and {len(scenario.test):,} {scored} {kind},"
        f" {tasks} task{'' if tasks == 1 else 's'}"
    )


@contextlib.contextmanager
def tolerating(what: str, warn: Callable[[str], None]) -> Iterator[None]:
    """Write in a `with` block what no number depends on; if that fails, warn that it is missing.

    The environment variable CL_CLIPFIT_DEBUG=1 shows the traceback.

    Args:
        what: for the warning.
        warn: receives the line that says what failed.
    """
    try:
        yield
    except Exception as error:
        if os.environ.get("CL_CLIPFIT_DEBUG"):
            raise
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        warn(f"{what} missing: {' '.join(reason.split())[:300]}")


@contextlib.contextmanager
def drawing(figure: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Draw a figure in a `with` block; if that fails, warn, and remove an earlier command's figure.

    The numbers that it shows are there, and must not be lost with it.

    Args:
        figure: its path, without its suffix.
        warn: receives the line that says what failed.
    """

    def failed(line: str) -> None:
        remove_figure(figure)
        warn(line)

    with tolerating(f"the figure {figure.name} is", failed):
        yield


def remove_figure(figure: Path) -> None:
    """Remove a figure of an earlier command, which would not match this one's numbers."""
    for kind in ("png", "svg"):
        with contextlib.suppress(OSError):
            figure.with_name(f"{figure.name}.{kind}").unlink()


class ConsoleDisplay(Progress):
    """Show the progress of a command on a console.

    A terminal shows a live view of each run. Pipes, TERM=dumb and NO_COLOR have plain lines.

    Args:
        console: where to print.
        quiet: print nothing.
    """

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        dumb = console.is_dumb_terminal or console.no_color
        self.lively = console.is_terminal and not dumb and not quiet
        self.view = LiveView()
        self._live: Live | None = None
        self._bar: Bar | None = None
        self._shown, self._shown_label = 0.0, ""

    def note(self, text: str) -> None:
        """Print one line."""
        if not self.quiet:
            self.console.print(literal(text), highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning, even if quiet."""
        self.console.print(literal(f"warning: {text}"), highlight=False, soft_wrap=True)

    def transfer(self, label: str, done: int, total: int | None) -> None:
        """Show transferred bytes: a bar on a terminal, otherwise a line every ten seconds."""
        of_all = f" of {total / 1e6:.0f}" if total else ""
        columns = DownloadColumn(), TransferSpeedColumn()
        self._follow(label, done, total, f"{done / 1e6:.0f}{of_all} MB", *columns)

    def count(self, label: str, done: int, total: int) -> None:
        """Show a number of images likewise; without a terminal, only if it takes long."""
        if self._shown_label != label:
            self._shown_label, self._shown = label, time.monotonic()
        self._follow(label, done, total, f"{done:,} of {total:,}", MofNCompleteColumn())

    def _follow(
        self, label: str, done: int, total: int | None, line: str, *columns: ProgressColumn
    ) -> None:
        if self.quiet or self._live is not None:  # the live view of a run has the screen
            return
        if self.lively:
            if self._bar is None:
                self._bar = Bar(
                    TextColumn("{task.description}"), BarColumn(), *columns,
                    TimeRemainingColumn(), console=self.console,
                )  # fmt: skip
                self._bar.add_task(literal(label))
                self._bar.start()
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)
            if done == total:
                self.stop()
            return
        ends = done == total and label != self._shown_label
        if ends or time.monotonic() - self._shown > _LINE_SECONDS:
            self._shown = time.monotonic()
            self.note(f"{label}: {line}")

    def start_run(self, label: str, stream: str = "") -> None:
        """Name the run that the next tasks belong to, and its stream."""
        self.view = LiveView(stream=stream, label=label)

    def start_task(self, task: int, tasks: int, epochs: int, steps: int) -> None:
        """Begin a task (1-based) of `steps` optimiser steps."""
        view = self.view
        view.task, view.tasks, view.epochs, view.steps = task, tasks, epochs, steps
        view.images = view.step = view.own_steps = 0
        view.terms, view.started, self._shown = {}, view.now(), 0.0
        if self.lively and self._live is None:
            self._end_bar()
            self._live = Live(
                console=self.console, get_renderable=lambda: self.view, transient=True,
                # What a plug-in prints must reach a pipe, not this console.
                redirect_stdout=sys.stdout.isatty(), redirect_stderr=sys.stderr.isatty(),
            )  # fmt: skip
            self._live.start()

    def step(self, strategy: Any) -> None:
        """Follow one optimiser step; the loss is read only when it is shown."""
        view = self.view
        view.images += len(strategy.mb_y)
        view.own_steps += 1
        view.step = strategy.task_steps  # including those of an earlier process
        now = view.now()
        view.seconds = now - view.started
        if self._live is not None and now - self._shown >= _REFRESH_SECONDS:
            self._shown, view.terms = now, strategy.read_terms()

    def row(self, task: int, row: Sequence[float | None]) -> None:
        """Fill a row of the table in the live view."""
        self.view.rows[task] = row

    def end_task(self, task: int, tasks: int, accuracy: float | None, seconds: float) -> None:
        """End a task: accuracy over all classes seen in percent, seconds of training."""
        view, trained = self.view, ""
        view.task_seconds.append(view.now() - view.started)
        if view.images:
            trained = f", {seconds:.1f} s"
            if view.own_steps == view.step:
                trained += f", {view.images / max(1e-9, seconds):.0f} images/s"
        shown = "no score" if accuracy is None else f"{accuracy:z.1f} %"
        self.note(f"{view.label} task {task}/{tasks}: {shown} over classes seen{trained}")

    def stop(self) -> None:
        """Remove the live view or bar, if any."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._end_bar()

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
