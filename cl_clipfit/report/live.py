"""The live view of a run on a terminal: where it is, its loss, the time left, and its table."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Table
from rich.text import Text

from cl_clipfit.errors import printable

_HEAD = 6  # lines above the rows of the table of accuracies
_SHADES = ((0, 32, 76), (87, 93, 109), (166, 157, 117), (255, 234, 70))  # of cividis
_DARK = 130  # mean of red, green and blue below which a background takes white text


def shade(percent: float) -> Style:
    """Return the colours of a cell; the map cividis is read alike with and without red or green.

    Args:
        percent: accuracy, from 0 to 100.
    """
    place = min(max(percent, 0.0), 100.0) / 100 * (len(_SHADES) - 1)
    below = min(int(place), len(_SHADES) - 2)
    mixed = [
        round(a + (place - below) * (b - a))
        for a, b in zip(_SHADES[below], _SHADES[below + 1], strict=True)
    ]
    text = "white" if sum(mixed) / 3 < _DARK else "black"
    return Style(color=text, bgcolor=f"rgb({mixed[0]},{mixed[1]},{mixed[2]})")


def clock(seconds: float | None) -> str:
    """Return a duration as hours, minutes and seconds.

    Example:
        >>> clock(3725.4), clock(None)
        ('1:02:05', '-:--:--')
    """
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


@dataclass
class LiveView:
    """What the live view shows; drawing it changes nothing.

    Attributes:
        stream: name of the stream.
        label: name of the run.
        task: the current one, counted from 1.
        tasks: their number.
        epochs: of the task.
        steps: of the task.
        step: the last one, with those of an earlier process.
        own_steps: those of this process.
        images: trained on in this process and task.
        seconds: that these took.
        terms: the loss and its terms at the last look.
        rows: accuracy on each task after each task, in percent, by row.
        task_seconds: of the finished tasks of this process, with scoring.
        started: when the task began, on the clock `now`.
    """

    stream: str = ""
    label: str = ""
    task: int = 0
    tasks: int = 0
    epochs: int = 0
    steps: int = 0
    step: int = 0
    own_steps: int = 0
    images: int = 0
    seconds: float = 0.0
    terms: Mapping[str, float] = field(default_factory=dict)
    rows: dict[int, Sequence[float | None]] = field(default_factory=dict)
    task_seconds: list[float] = field(default_factory=list)
    started: float = 0.0

    @staticmethod
    def now() -> float:
        """Return the time in seconds; only differences matter."""
        return time.monotonic()

    @property
    def scoring(self) -> bool:
        """Whether the task's last step is done: what follows may take longer than a step."""
        return self.step >= self.steps

    def speed(self) -> float:
        """Return the images per second of the task's steps so far."""
        return self.images / max(1e-9, self.seconds)

    def seconds_left(self) -> tuple[float | None, float | None]:
        """Return the time left in the task's training, and in the run; None if not known yet."""
        if self.own_steps == 0 and not self.scoring:
            return None, None
        elapsed = self.now() - self.started
        rest = 0.0 if self.scoring else elapsed / self.own_steps * (self.steps - self.step)
        done = self.task_seconds or [elapsed + rest]
        return rest, rest + sum(done) / len(done) * (self.tasks - self.task)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the view in the width of the console, and in no more lines than it has."""
        width, height = options.max_width, console.height
        yield self._title(width)
        yield self._progress(width)
        yield self._loss(width)
        if self.tasks and height > _HEAD + 2:
            yield Text()
            yield self._table(width, height - _HEAD - 1)

    def _title(self, width: int) -> Text:
        stream = f"{self.stream}: " if self.stream else ""
        line = Text(printable(f"{stream}{self.label}"), style="bold", no_wrap=True)
        line.truncate(width, overflow="ellipsis")
        return line

    def _progress(self, width: int) -> RenderableType:
        """Return a line with the task, a bar, epoch and step, and the time left."""
        of_task, of_run = self.seconds_left()
        epoch = 1 + max(0, self.step - 1) * self.epochs // max(1, self.steps)
        place = f"epoch {min(epoch, self.epochs)}/{self.epochs} step {self.step}/{self.steps}"
        if self.scoring:
            place = "scoring and measuring"
        left = f"{clock(of_task)} left"
        if self.task < self.tasks and of_run is not None:
            left += f", {clock(of_run)} in all"
        task = f"task {self.task}/{self.tasks}"
        room = width - len(task) - len(place) - len(left) - 6
        bar = ProgressBar(total=max(1, self.steps), completed=self.step, width=max(room, 4))
        if self.steps == 0:
            bar = ProgressBar(total=1, completed=1, width=max(room, 4))
        parts = Table.grid(padding=(0, 2))
        parts.add_row(task, bar, place, left) if room >= 4 else parts.add_row(task, place, left)
        return parts

    def _loss(self, width: int) -> Text:
        """Return a line with the loss, its terms as far as there is room, and the speed."""
        line = Text(no_wrap=True)
        if not self.terms:
            return line.append("no step yet" if self.steps else "nothing trains", style="dim")
        terms = dict(self.terms)
        loss = f"loss {terms.pop('loss'):.3f}"
        speed = f"{self.speed():,.0f} images/s"
        named = " + ".join(f"{name} {value:.3f}" for name, value in terms.items())
        text = Text(f"{loss} = {named}" if len(terms) > 1 else loss)
        text.truncate(max(len(loss), width - len(speed) - 2), overflow="ellipsis")
        line.append_text(text).append(f"  {speed}", style="dim")
        line.truncate(width, overflow="ellipsis")
        return line

    def _table(self, width: int, most: int) -> RenderableType:
        """Return the accuracies: the last tasks that fit the width, the last rows that fit."""
        label, cell = len(f"after {self.tasks}") + 1, 5
        if (width - label) // (cell + 1) < self.tasks:
            cell = 3  # without decimals
        columns = max(1, min(self.tasks, (width - label) // (cell + 1)))
        known = max(self.rows, default=0)
        end = max(columns, min(self.tasks, max(known, self.task)))
        shown = range(end - columns + 1, end + 1)
        last = min(self.tasks, max(most, max(known, self.task)))
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(width=label - 1)
        for _ in shown:
            table.add_column(width=cell, justify="right")
        table.add_row("task", *(Text(str(task)) for task in shown), style="bold")
        for task in range(max(1, last - most + 1), last + 1):
            row = self.rows.get(task)
            table.add_row(
                Text(f"after {task}", style="" if row else "dim"),
                *(_cell(row[at - 1] if row else None, cell) for at in shown),
            )
        note = "accuracy on each task, in percent, among the classes seen"
        return Group(Text(note, style="dim", no_wrap=True, overflow="ellipsis"), table)


def _cell(accuracy: float | None, width: int) -> Text:
    if accuracy is None:
        return Text("\N{MIDDLE DOT}", style="dim")
    text = f"{accuracy:z.0f}" if width == 3 else f"{accuracy:z.1f}"
    return Text(text.rjust(width), style=shade(accuracy))
