"""The table of all strategies: its rows are the results of runs."""

import json
from pathlib import Path

import pytest

from benchmarks import methods


def test_rows_are_means_of_results_and_the_best_comes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--streams", "split-digits", "--strategies", "zero-shot", "simplecil", "--seeds", "0"]
    assert methods.main([*given, "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {
        line.split(" | ")[0].strip("| "): line.split(" | ") for line in lines if "| 0 |" in line
    }
    assert list(rows) == ["simplecil", "zero-shot"]
    for file in tmp_path.glob("*/result.json"):
        result = json.loads(file.read_text())
        wanted = [result["metrics"][name] for name in methods.COLUMNS.values()]
        assert rows[result["label"]][1:5] == [f"{value:z.1f}" for value in wanted]
        assert rows[result["label"]][7] == f"{result['kept']['what']} |"
