"""The page of all strategies names every one, and counts what a method trains."""

from pathlib import Path

import pytest

from benchmarks import catalogue
from cl_clipfit.registry import Registry


def test_the_page_has_a_row_for_every_strategy() -> None:
    lines = Path("docs/strategies.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split("`")[1] for line in lines if line.startswith("| `")]
    assert sorted(rows) == sorted(entry.name for entry in Registry().entries("strategies"))


def test_rows_count_what_the_optimiser_changes(capsys: pytest.CaptureFixture[str]) -> None:
    catalogue.main(["--model", "mini", "--strategies", "clipfit", "lora", "zero-shot"])
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("`")[1]: line.split(" | ") for line in lines if line.startswith("| `")}
    # q, k and v of 4 image blocks (width 128) and 3 text blocks (64), B and A of rank 2
    assert rows["lora"][1] == f"{4 * 3 * 2 * 2 * 128 + 3 * 3 * 2 * 2 * 64:,}"
    assert rows["clipfit"][1:3] == ["2,752", "both"]
    assert rows["zero-shot"][1:3] == ["0", "neither"]


def test_a_row_says_what_is_used_of_old_images(
    capsys: pytest.CaptureFixture[str],
) -> None:
    catalogue.main(["--model", "mini", "--strategies", "rail", "tip-adapter"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    ends = {line.split("`")[1]: line.split(" | ")[-1] for line in lines}
    assert ends == {"rail": "as its options say |", "tip-adapter": "features |"}
