"""The tables of all strategies: made of records of runs, which grow and are not repeated."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import methods

FEW = ["--streams", "split-digits", "--seeds", "0"]


def _tables(tmp_path: Path, capsys: pytest.CaptureFixture[str], *strategies: str) -> list[str]:
    files = ["--records", str(tmp_path / "runs.jsonl"), "--output", str(tmp_path / "runs")]
    assert methods.main([*FEW, "--strategies", *strategies, *files]) == 0
    return [line for line in capsys.readouterr().out.splitlines() if "| 0 |" in line]


def test_rows_are_the_numbers_of_runs_and_the_best_comes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = _tables(tmp_path, capsys, "zero-shot", "simplecil")
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in lines}
    assert list(rows) == ["simplecil", "zero-shot"]
    for file in tmp_path.glob("runs/*/result.json"):
        result = json.loads(file.read_text())
        wanted = [result["metrics"][name] for name in methods.COLUMNS.values()]
        assert rows[result["label"]][1:7] == [f"{value:z.1f}" for value in wanted]
        assert rows[result["label"]][9] == f"{result['kept']['what']} |"

    def never(config: Any) -> None:
        raise AssertionError(config)

    monkeypatch.setattr(methods, "run", never)
    assert _tables(tmp_path, capsys, "simplecil") == lines


def test_a_record_has_what_a_table_needs_and_seeds_are_averaged() -> None:
    content = {
        "scenario": "tiny", "label": "mine", "seed": 1, "metrics": {"average_accuracy": 71.0},
        "curves": {"zero_shot": [None, 70.0, 60.0]}, "timings": {"train_seconds": [1.24, 2.0]},
        "model": {"trainable_parameters": 1234, "parameters": 9}, "kept": {"what": "sums"},
        "environment": {"cl_clipfit_sha256": "abc"}, "accuracy_matrix": [],
    }  # fmt: skip
    one = methods.record(content, "tiny", "seed:3")
    assert (one["order"], one["curves"]) == ("seed:3", {"zero_shot": [60.0]})
    assert one["timings"] == {"train_seconds": [3.2]} and "accuracy_matrix" not in one
    other = {**one, "seed": 2, "metrics": {**one["metrics"], "average_accuracy": 73.0}}
    line = methods.table("tiny", [one, other]).splitlines()[-1]
    # The interval of two values: 12.706 times their standard deviation over the root of two.
    assert line == "| mine | 72.0 ± 12.7 | - | - | - | - | - | 3 | 1,234 | sums |"
