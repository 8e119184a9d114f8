"""`run.py bank list|show|diff`: look into what the tasks of a run trained."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cl_clipfit.bank.index import INDEX
from cl_clipfit.bank.store import DeltaBank
from cl_clipfit.errors import UserError, is_file
from cl_clipfit.experiment.reopen import open_run
from cl_clipfit.merging.layers import change_by_layer, squared_change_by_layer
from cl_clipfit.report.display import ConsoleDisplay, drawing, literal, say
from cl_clipfit.report.figures import plot_changes
from cl_clipfit.storage.manifest import adding
from cl_clipfit.storage.run_folder import BANK, CONFIG

_TOP = 10
_CELL = 44  # characters of a list of names in a table


def open_bank(path: Path) -> DeltaBank:
    """Open the bank of a run folder, or a bank folder itself.

    Raises:
        UserError: it is neither of them, or the index is damaged.
    """
    folder = path / BANK if is_file(path / BANK / INDEX) else path
    if not is_file(folder / INDEX):
        raise UserError(f"{path}: no bank here: give the folder of a run, or of its bank")
    return DeltaBank.open(folder)


def _shortened(names: Sequence[str]) -> str:
    """Join names as far as they fit; say how many are left out."""
    first = [name[: 2 * _CELL + 1] for name in names[:_CELL]]  # more cannot fit
    shown, count = ", ".join(first), len(first)
    while len(shown) > _CELL and count > 1:
        count -= 1
        shown = f"{', '.join(first[:count])} and {len(names) - count} more"
    return literal(shown if len(shown) <= 2 * _CELL else f"{shown[: 2 * _CELL]}...")


def file_size(count: int) -> str:
    """Return a number of bytes in MB or kB."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def list_bank(path: Path, out: Console) -> None:
    """Verify all files of a bank, then print its content.

    Args:
        path: a run folder or a bank folder.
        out: where to print.

    Raises:
        UserError: there is no bank, or a file is damaged; the message names it.
    """
    bank = open_bank(path)
    bank.verify()
    base, tasks = bank.index["base"], bank.index["tasks"]
    selection = bank.index["selection"].values()
    values = sum(map(math.prod, selection))
    architecture, pretrained = base["architecture"] or "unknown", base["pretrained"] or "unknown"
    weights = (base["weights_sha256"] or "unknown")[:12]
    say(out, f"base model: {architecture} ({pretrained}), weights {weights}")
    say(out, f"strategy: {bank.index['strategy']}")
    say(out, f"a task: {len(selection)} tensor{'s' * (len(selection) != 1)}, {values:,} values")
    table = Table("task", "classes", "parents", "file", box=box.SIMPLE_HEAD)
    table.add_column("size", justify="right", no_wrap=True)
    for record in tasks:
        files = record["files"].values()
        table.add_row(
            str(record["task"]), _shortened(record["classes"]), _shortened(record["parents"]),
            "\n".join(literal(file["name"]) for file in files),
            "\n".join(file_size(file["bytes"]) for file in files),
        )  # fmt: skip
    out.print(table if tasks else "no tasks yet")
    count = sum(len(record["files"]) for record in tasks)
    say(out, f"verified: all {count} files are, byte for byte, what was written")


def show_task(path: Path, task: int, out: Console, err: Console) -> None:
    """Print a task's tensors in the order of the model, and for a run how far each one moved.

    Args:
        path: a run folder; or a bank folder, for which no model is loaded.
        task: counted from 1.
        out: where to print.
        err: where progress goes.

    Raises:
        UserError: there is no bank or no such task, a file is damaged, or the run cannot be opened.
    """
    delta = open_bank(path).delta(task)
    changes: Mapping[str, Tensor] = {}
    if is_file(path / CONFIG):
        run = open_run(path, ConsoleDisplay(err), device="cpu")
        changes = delta.difference(run.strategy.model.pretrained_values)
    table = Table(box=box.SIMPLE_HEAD, title=f"task {task}: {_shortened(delta.classes)}")
    table.add_column("tensor", overflow="fold")
    for title in ["shape", "norm", *(["root mean square change\nfrom pretrained"] * bool(changes))]:
        table.add_column(title, justify="right", no_wrap=True)
    for name, value in delta.values.items():
        shape = " x ".join(map(str, value.shape)) or "scalar"
        moved = [f"{_rms(changes[name]):.4g}"] if changes else []
        table.add_row(literal(name), shape, f"{value.double().norm():.4g}", *moved)
    out.print(table)


def _rms(value: Tensor) -> float:
    return float(value.double().square().mean().sqrt())


def diff_bank(
    path: Path, out: Console, err: Console, task: int | None = None, to: int | None = None
) -> None:
    """Print which layers moved most: in every task, or from one task to another.

    A task's own change is its values minus those of the previous task, or in task 1 minus the
    pretrained ones. For all tasks, `bank-diff.png` and `.svg` are drawn into the run's folder.

    Args:
        path: a run folder; for the difference of two tasks, a bank folder is enough.
        out: where to print.
        err: where progress goes.
        task: where the difference starts, counted from 1; 0 is the pretrained model.
        to: where it ends, likewise.

    Raises:
        UserError: only one of `task` and `to` is given, there is no such task, or the run cannot be
            opened.
    """
    if (task is None) != (to is None):
        raise UserError("--task and --to need each other: the difference is taken from A to B")
    bank = open_bank(path)
    run = None if task and to else open_run(path, ConsoleDisplay(err), device="cpu")
    start = run.strategy.model.pretrained_values if run else {}
    if task is not None and to is not None:
        one, other = (bank.load(t) if t else start for t in (task, to))
        ends = " to ".join(f"task {t}" if t else "pretrained" for t in (task, to))
        after = {name: other[name] for name in bank.index["selection"]}
        out.print(_moved_table(ends, after, one))
        return
    assert run is not None
    changes = []
    for number, (before, now) in enumerate(_steps(bank, start), 1):
        classes = _shortened(bank.index["tasks"][number - 1]["classes"])
        out.print(_moved_table(f"task {number}, its own change ({classes})", now, before))
        changes.append(change_by_layer(now, before))
    figure = path / "bank-diff"
    with adding(path), drawing(figure, ConsoleDisplay(err).warn):
        plot_changes(run.result, figure, changes, "each task's own change", "task")
        say(out, f"figure: {figure}.png")


def _steps(
    bank: DeltaBank, start: Mapping[str, Tensor]
) -> Iterator[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]:
    """Yield the values before and after every task; at most two sets are in memory at once."""
    before: Mapping[str, Tensor] = start
    for task in range(1, len(bank) + 1):
        after = bank.load(task)
        yield before, after
        before = after


def _moved_table(title: str, after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Table:
    """Return the layers that moved most, and their shares of the squared change."""
    squares = {name: float(s) for name, s in squared_change_by_layer(after, before).items()}
    moved, total = change_by_layer(after, before), sum(squares.values())
    ranked = sorted(squares, key=lambda layer: -moved[layer])  # equal ones: in model order
    top, rest = ranked[:_TOP], ranked[_TOP:]
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("layer", overflow="fold", min_width=40)
    table.add_column("root mean square change", justify="right", no_wrap=True)
    table.add_column("share of squared change", justify="right", no_wrap=True)

    def share(*layers: str) -> str:
        return f"{sum(squares[layer] for layer in layers) / total:.1%}" if total else "-"

    for layer in top:
        table.add_row(literal(layer), f"{moved[layer]:.3g}", share(layer))
    if rest:
        table.add_row(f"the {len(rest)} others", "", share(*rest))
    return table
