"""`--dry-run`: the plan is what the command then does, and nothing is left behind."""

import json
from pathlib import Path

import pytest

from cl_clipfit.cli.app import main
from tests.support.tiny import TINY


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, list[str]]:
    """Return the cells of each row by its folder."""
    capsys.readouterr()
    assert main([*arguments, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    return {row[4]: row for row in rows if row[4].startswith("tiny-stream")}


def test_the_plan_is_what_the_command_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    command = [*TINY, "--strategy", "full", "lda", "--epochs", "2", "--output", str(out), "--quiet"]
    plan = planned(capsys, *command, "--seed", "0", "1")
    assert not out.exists()
    assert [row[5] for row in plan.values()] == ["new"] * 4
    assert main(command) == 0
    folders = {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/result.json")}
    assert folders.keys() < plan.keys()
    for name, result in folders.items():
        row = plan[name]
        assert row[:2] == [result["label"], "0"]
        assert row[2] == f"{result['model']['trainable_parameters']:,}"
        images = [task["train_samples"] for task in result["tasks"]]
        steps = sum(2 * -(-count // 16) for count in images) if result["label"] == "full" else 0
        assert row[3] == str(steps)
    after = planned(capsys, *command, "--seed", "0", "1")
    states = {name: row[5] for name, row in after.items()}
    assert states == {n: "complete: shown again" if n in folders else "new" for n in plan}


def test_a_mistake_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--strategy", "full:epoch=3", "--dry-run"]) == 2
    assert "epoch" in capsys.readouterr().err
