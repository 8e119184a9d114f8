"""Progress on the console: a live bar on a terminal, otherwise one plain line per task."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
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
from rich.table import Column

from cl_clipfit.errors import UserError, printable
from cl_clipfit.runtime.progress import Progress
from cl_clipfit.storage.run_folder import stream_name

if TYPE_CHECKING:
    from cl_clipfit.data.streams import Scenario

_REFRESH_SECONDS = 0.25
_LINE_SECONDS = 10
_BAR = 12  # columns


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
def drawing(figure: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Draw a figure in a `with` block; if that fails, warn, and remove an earlier command's figure.

    The numbers that it shows are there, and must not be lost with it. The environment variable
    CL_CLIPFIT_DEBUG=1 shows the traceback.

    Args:
        figure: its path, without its suffix.
        warn: receives the line that says what failed.
    """
    try:
        yield
    except Exception as error:
        if os.environ.get("CL_CLIPFIT_DEBUG"):
            raise
        remove_figure(figure)
        warn(f"the figure {figure.name} is missing: {type(error).__name__}: {error}")


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


def remove_figure(figure: Path) -> None:
    """Remove a figure of an earlier command, which would not match this one's numbers."""
    for kind in ("png", "svg"):
        with contextlib.suppress(OSError):
            figure.with_name(f"{figure.name}.{kind}").unlink()


class ConsoleDisplay(Progress):
    """Show the progress of a command on a console.

    Args:
        console: where to print.
        quiet: print nothing.
    """

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self._bar: Bar | None = None
        self._run = ""
        self._shown, self._shown_label = 0.0, ""
        self._images = 0
        self._steps = 0  # of the current task
        self._process_steps = 0  # of these, the ones made in this process
        self._started = 0.0
        self._epochs = 0
        self._total = 0

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
        if self.quiet:
            return
        if self.console.is_terminal:
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

    def start_run(self, label: str) -> None:
        """Name the run that the next tasks belong to."""
        self._run = label

    def start_task(self, task: int, tasks: int, epochs: int, steps: int) -> None:
        """Begin a task (1-based) of `steps` optimiser steps."""
        self._images = self._steps = self._process_steps = 0
        self._epochs, self._total = epochs, steps
        self._started = self._shown = time.monotonic()
        if self.quiet or not self.console.is_terminal or steps == 0:
            return
        cut = Column(ratio=1, no_wrap=True)  # what does not fit, instead of the time left
        self._bar = Bar(
            TimeRemainingColumn(), BarColumn(_BAR),
            TextColumn("{task.description}{task.fields[detail]}", table_column=cut),
            console=self.console, transient=True, expand=True,
        )  # fmt: skip
        label = f"{literal(self._run)} task {task}/{tasks}"
        self._bar.add_task(label, total=steps, detail="")
        self._bar.start()

    def step(self, strategy: Any) -> None:
        """Show one optimiser step; the loss is read only when it is shown."""
        self._images += len(strategy.mb_y)
        self._process_steps += 1
        self._steps = strategy.task_steps  # including those of an earlier process
        now = time.monotonic()
        if self._bar is None:
            return
        if self._steps == self._total:  # what follows may take longer than a step
            label = f"scoring and measuring: {self._bar.tasks[0].description}"
            self._bar.update(
                self._bar.task_ids[0], description=label, completed=self._steps, detail=""
            )
            return
        if now - self._shown < _REFRESH_SECONDS:
            return
        self._shown = now
        epoch = 1 + (self._steps - 1) * self._epochs // max(1, self._total)
        speed = self._images / (now - self._started)
        detail = (
            f" epoch {epoch}/{self._epochs} step {self._steps}/{self._total}"
            f" loss {strategy.loss.item():.3f} {speed:.0f} images/s"
        )
        self._bar.update(self._bar.task_ids[0], completed=self._steps, detail=detail)

    def end_task(self, task: int, tasks: int, accuracy: float | None, seconds: float) -> None:
        """End a task: accuracy over all classes seen in percent, seconds of training."""
        self.stop()
        trained = ""
        if self._images:
            trained = f", trained in {seconds:.1f} s"
            if self._process_steps == self._steps:
                trained += f" at {self._images / max(1e-9, seconds):.0f} images/s"
        shown = "-" if accuracy is None else f"{accuracy:z.1f} %"
        self.note(f"{self._run} task {task}/{tasks}: accuracy over classes seen {shown}{trained}")

    def stop(self) -> None:
        """Remove the live bar, if any."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
