"""The run folder: its name, its files, written whole or not at all."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cl_clipfit.errors import UserError, is_file
from cl_clipfit.files import write_atomic

SCHEMA = 1
RESULT = "result.json"
# What a run and the commands on it leave, and a repeated run takes away; its bank goes too.
LEFT_BEHIND = (
    RESULT, "accuracy_matrix.csv", "curves.*", "what_moved.*", "bank-*.*", "landscape-*.*",
    "plane-*.*", "bank/index.json", "bank/task-*.safetensors",
)  # fmt: skip


def settings_hash(settings: dict[str, Any]) -> str:
    """Return 8 hex digits over everything that changes numbers, in canonical JSON."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


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


def read_result(file: Path) -> dict[str, Any] | None:
    """Return the `result.json` of a complete run; None where there is none.

    Raises:
        UserError: a result that cannot be read, or of another version.
    """
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


class RunFolder:
    """One run's folder, `SCENARIO-STRATEGY-sSEED-HASH/` under the output folder."""

    def __init__(self, output: Path, scenario: str, strategy: str, seed: int, digest: str) -> None:
        self.digest = digest
        self.path = output / f"{scenario}-{strategy}-s{seed}-{digest}"

    def finished_result(self) -> dict[str, Any] | None:
        """Return the result of a complete run; None where there is none.

        Raises:
            UserError: a result that cannot be read.
        """
        return read_result(self.path / RESULT)

    def begin(self, config: dict[str, Any]) -> None:
        """Create the folder, clear what an earlier run of the same settings left, write config."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for pattern in LEFT_BEHIND:
                for stale in self.path.glob(pattern):
                    stale.unlink()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error
        write_yaml(self.path / "config.yaml", config)

    def save_result(self, result: dict[str, Any]) -> None:
        """Write `accuracy_matrix.csv` and then `result.json`, which makes the run complete."""
        matrix = result["accuracy_matrix"]
        header = ["after_task", *(f"task_{j}" for j in range(1, len(matrix[0]) + 1))]
        rows = [[t, *row] for t, row in enumerate(matrix)]
        write_atomic(self.path / "accuracy_matrix.csv", csv_text(header, rows))
        write_json(self.path / RESULT, {"schema": SCHEMA, "digest": self.digest, **result})
