"""`predictions/row-000.npz`, ...: what a run predicts for every test image, a file per row."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cl_clipfit.errors import UserError
from cl_clipfit.metrics.predictions import TOP, Predictions
from cl_clipfit.storage.arrays import read_npz, render_npz
from cl_clipfit.storage.files import write_atomic
from cl_clipfit.storage.run_folder import PREDICTIONS

_KINDS = {"labels": "i4", "top": "i4", "scores": "f2", "tasks": "i4"}


def row_file(run: Path, row: int) -> Path:
    """Return the file of a row: 0 before training, t after task t."""
    return run / PREDICTIONS / f"row-{row:03d}.npz"


def write_predictions(run: Path, row: int, predictions: Predictions) -> None:
    """Write the predictions of a row; equal predictions give equal bytes.

    Raises:
        UserError: the folder cannot be written.
    """
    arrays = {name: getattr(predictions, name) for name in _KINDS}
    write_atomic(row_file(run, row), render_npz(arrays))


def has_predictions(run: Path, rows: int) -> bool:
    """Return whether the first `rows` rows are kept."""
    return all(row_file(run, row).is_file() for row in range(rows))


def read_predictions(run: Path | str, rows: Sequence[int] | None = None) -> list[Predictions]:
    """Return what a run predicted for every test image: before training, and after each task.

    Args:
        run: its folder.
        rows: which rows to read, from 0; default: all.

    Returns:
        one entry for each of these rows of the accuracy tables; none if the run kept none
        (`--no-predictions`, or an older version).

    Raises:
        UserError: a row is missing, or a file is not what a run writes.
    """
    folder = Path(run) / PREDICTIONS
    count = len([*folder.glob("row-*.npz")])
    numbers = (range(count) if rows is None else rows) if count else ()
    found = [_read(row_file(Path(run), row)) for row in numbers]
    for row, predictions in zip(numbers, found, strict=True):
        if not np.array_equal(predictions.labels, found[0].labels):
            raise UserError(
                f"{folder}: row {row} has other images than row {numbers[0]}: repeat the run"
            )
    return found


def _read(file: Path) -> Predictions:
    if not file.is_file():
        raise UserError(f"{file} is missing: restore it, or repeat the run with --fresh")
    try:
        arrays = read_npz(file, _KINDS)
        count = len(arrays["labels"])
        shapes = {"labels": (count,), "top": (count, TOP), "scores": (count, TOP),
                  "tasks": (count,)}  # fmt: skip
        for name, kind in _KINDS.items():
            if arrays[name].shape != shapes[name] or arrays[name].dtype != np.dtype(kind):
                raise ValueError(f"{name} is {arrays[name].dtype} {arrays[name].shape}")
    except Exception as error:  # a damaged file may raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{file} is not what a run writes: {reason}: repeat the run with --fresh"
        ) from error
    return Predictions(**arrays)
