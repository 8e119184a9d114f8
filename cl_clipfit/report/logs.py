"""`--log`: a run's history for TensorBoard, Weights & Biases, or a spreadsheet.

A log receives every line of `history.jsonl`, of an earlier process too, so that a resumed run has a
whole log. Its libraries are imported only when it is asked for.
"""

import contextlib
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cl_clipfit.errors import UserError
from cl_clipfit.storage.files import write_atomic, writing
from cl_clipfit.storage.history import read_history

LOGS = "logs"  # folder beside those of the runs
_PLACES = ("event", "task", "stage", "epoch", "step", "total_step")  # of a line: where, not what
Line = Mapping[str, Any]


class Log(Protocol):
    """What receives the lines of a history."""

    def write(self, line: Line) -> None:
        """Receive a line."""

    def close(self) -> None:
        """End the log."""


def flat(line: Line) -> dict[str, Any]:
    """Return a line without its terms, which become values of their own.

    Example:
        >>> flat({"event": "step", "loss": 1.5, "terms": {"cross-entropy": 1.0}})
        {'event': 'step', 'loss': 1.5, 'terms/cross-entropy': 1.0}
    """
    terms = {f"terms/{name}": value for name, value in line.get("terms", {}).items()}
    return {**{key: value for key, value in line.items() if key != "terms"}, **terms}


class TensorBoardLog:
    """Event files that TensorBoard shows; tasks are counted by task, all else by step.

    Args:
        logs: folder of all logs.
        name: of the run.
        settings: of the run.
    """

    def __init__(self, logs: Path, name: str, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.place = logs / "tensorboard" / name
        with writing(self.place):
            for earlier in self.place.glob("events.out.tfevents.*"):  # its lines come again
                earlier.unlink()
            self._writer = SummaryWriter(str(self.place))

    def write(self, line: Line) -> None:
        """Add a point to every curve."""
        event, values = line["event"], flat(line)
        step = line["task"] if event == "task" else line["total_step"]
        for key, value in values.items():
            if key not in _PLACES and value is not None:
                self._writer.add_scalar(f"{event}/{key}", value, step)
        if event != "step":
            self._writer.flush()

    def close(self) -> None:
        """Write what is waiting."""
        self._writer.close()


class WandbLog:
    """A run of Weights & Biases in the project `cl_clipfit`; WANDB_MODE=offline sends nothing.

    Args:
        logs: folder of all logs.
        name: of the run.
        settings: of the run.
    """

    def __init__(self, logs: Path, name: str, settings: Mapping[str, Any]) -> None:
        import wandb

        self.place = logs / "wandb"
        logs.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project="cl_clipfit", name=name, dir=str(logs), config=dict(settings),
                settings=wandb.Settings(silent=True, console="off", disable_git=True),
            )  # fmt: skip
        except Exception as error:  # without a login, a network or a port
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"--log wandb: {reason}: log in with `wandb login`, or set WANDB_MODE=offline"
            ) from error
        self._run.define_metric("total_step")
        self._run.define_metric("*", step_metric="total_step")

    def write(self, line: Line) -> None:
        """Log the values of a line."""
        values = {k: v for k, v in flat(line).items() if k not in _PLACES and v is not None}
        named = {f"{line['event']}/{key}": value for key, value in values.items()}
        self._run.log({**named, "task": line["task"], "total_step": line["total_step"]})

    def close(self) -> None:
        """End the run, and send what is waiting unless it is offline."""
        self._run.finish()


class CsvLog:
    """One CSV file with a line for each of the history, written after every task.

    Args:
        logs: folder of all logs.
        name: of the run.
        settings: of the run.
    """

    def __init__(self, logs: Path, name: str, settings: Mapping[str, Any]) -> None:
        self.place = logs / "csv" / f"{name}.csv"
        self._lines: list[dict[str, Any]] = []

    def write(self, line: Line) -> None:
        """Keep a line; write the file after a task."""
        self._lines.append(flat(line))
        if line["event"] == "task":
            self.close()

    def close(self) -> None:
        """Write the file."""
        columns = dict.fromkeys([*_PLACES, *(key for line in self._lines for key in line)])
        out = io.StringIO()
        writer = csv.DictWriter(out, [*columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._lines)
        write_atomic(self.place, out.getvalue())


_KINDS: dict[str, type[TensorBoardLog] | type[WandbLog] | type[CsvLog]] = {
    "tensorboard": TensorBoardLog, "wandb": WandbLog, "csv": CsvLog,
}  # fmt: skip


@contextlib.contextmanager
def open_logs(
    kinds: Sequence[str], output: Path, name: str, settings: Mapping[str, Any]
) -> Iterator[list[Log]]:
    """Open logs of a run, and close them at the end of a `with` block.

    Args:
        kinds: "tensorboard", "wandb" or "csv".
        output: folder of the runs; the logs are in its folder `logs`.
        name: of the run.
        settings: of the run.

    Raises:
        UserError: a log cannot be written, or its library is not installed or cannot start.
    """
    with contextlib.ExitStack() as stack:
        logs = []
        for kind in dict.fromkeys(kinds):
            try:
                log: Log = _KINDS[kind](output / LOGS, name, settings)
            except ImportError as error:
                raise UserError(f"--log {kind}: pip install {kind}: {error}") from error
            stack.callback(log.close)
            logs.append(log)
        yield logs


def log_again(kinds: Sequence[str], run: Path, settings: Mapping[str, Any]) -> None:
    """Write logs of a finished run from its history."""
    with open_logs(kinds, run.parent, run.name, settings) as logs:
        for line in read_history(run) if logs else ():
            for log in logs:
                log.write(line)
