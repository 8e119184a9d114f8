"""The run folder: its name, its files, written whole or not at all."""

import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cl_clipfit.errors import UserError, is_file

SCHEMA = 1
RESULT = "result.json"


def settings_hash(settings: dict[str, Any]) -> str:
    """Return 8 hex digits over everything that changes numbers, in canonical JSON."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that it appears whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    data = data.encode() if isinstance(data, str) else data
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp's 0600 would make a shared folder unreadable
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN), one key a line at the top."""
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_yaml(path: Path, value: dict[str, Any]) -> None:
    """Write settings as YAML, in the order given."""
    import yaml

    write_atomic(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return CSV; None is an empty cell, floats have 4 decimals."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(
            ["" if v is None else f"{v:.4f}" if isinstance(v, float) else v for v in row]
        )
    return out.getvalue()


class RunFolder:
    """One run's folder, `SCENARIO-STRATEGY-sSEED-HASH/` under the output folder."""

    def __init__(self, output: Path, scenario: str, strategy: str, seed: int, digest: str) -> None:
        self.path = output / f"{scenario}-{strategy}-s{seed}-{digest}"

    def finished_result(self) -> dict[str, Any] | None:
        """Return the result of a complete run; None where there is none.

        Raises:
            UserError: a result that cannot be read.
        """
        file = self.path / RESULT
        if not is_file(file):
            return None
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read: repeat the run with --fresh") from error
        complete = isinstance(result, dict) and result.get("complete") is True
        if complete and result.get("schema") != SCHEMA:
            raise UserError(
                f"{file} has schema {result.get('schema')}, this version reads {SCHEMA}:"
                " repeat the run with --fresh"
            )
        return result if complete else None

    def begin(self, config: dict[str, Any]) -> None:
        """Create the folder, clear what an earlier run of the same settings left, write config."""
        try:
            (self.path / "bank").mkdir(parents=True, exist_ok=True)
            figures = [f"{n}.{kind}" for n in ("curves", "what_moved") for kind in ("png", "svg")]
            for name in (RESULT, "accuracy_matrix.csv", *figures):
                (self.path / name).unlink(missing_ok=True)
            for stale in (self.path / "bank").glob("task-*.safetensors"):
                stale.unlink()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error
        write_yaml(self.path / "config.yaml", config)

    def save_task(self, task: int, values: dict[str, Any]) -> None:
        """Keep the trained values of a task (1-based) in the bank."""
        from safetensors.torch import save

        if values:
            tensors = {name: value.detach().cpu().contiguous() for name, value in values.items()}
            write_atomic(self.path / "bank" / f"task-{task:03d}.safetensors", save(tensors))

    def save_result(self, result: dict[str, Any]) -> None:
        """Write `accuracy_matrix.csv` and then `result.json`, which makes the run complete."""
        matrix = result["accuracy_matrix"]
        header = ["after_task", *(f"task_{j}" for j in range(1, len(matrix[0]) + 1))]
        rows = [[t, *row] for t, row in enumerate(matrix)]
        write_atomic(self.path / "accuracy_matrix.csv", csv_text(header, rows))
        write_json(self.path / RESULT, {"schema": SCHEMA, **result})
