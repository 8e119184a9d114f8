"""`--dry-run`: the plan is what the command then does and takes, and nothing is left behind."""

import json
from pathlib import Path
from typing import Any

import pytest

from cl_clipfit.cli.app import main
from cl_clipfit.storage.checkpoints import Checkpoints
from tests.support.tiny import TINY

_UNITS = {"kB": 1e3, "MB": 1e6}


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


def in_bytes(cell: str) -> float:
    """Return the number of "about 1.5 MB"."""
    _, number, unit = cell.split()
    return float(number.replace(",", "")) * _UNITS[unit]


def size(folder: Path, pattern: str) -> int:
    return sum(file.stat().st_size for file in folder.glob(pattern) if file.is_file())


def test_the_sizes_are_those_of_the_runs(
    drawn_figures: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    largest: dict[str, int] = {}
    save = Checkpoints.save

    def measured(self: Checkpoints, state: dict[str, Any]) -> None:
        save(self, state)
        name = self.folder.parent.name.split("-")[2]
        largest[name] = max(largest.get(name, 0), size(self.folder, "*"))

    monkeypatch.setattr(Checkpoints, "save", measured)
    methods = ["zero-shot", "clipfit", "stack:width=40"]
    out = tmp_path / "runs"
    command = [*TINY, "--strategy", *methods, "--epochs", "2", "--output", str(out), "--quiet"]
    assert main([*command, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    rows = [[c.strip() for c in li.split("│")[1:-1]] for li in printed.splitlines() if "│" in li]
    costs = {row[0]: row for row in rows if row[1] == "1" and row[0] in methods}
    assert main(command) == 0
    for method in methods:
        _, _, seconds, _, bank, folder, checkpoints = costs[method]
        (run,) = out.glob(f"tiny-stream-{method.partition(':')[0]}-*")
        assert seconds == "under 1 s" or seconds.startswith("about ")
        assert 1 / 1.5 < in_bytes(folder) / size(run, "**/*") < 1.5
        if method == "zero-shot":
            assert bank == checkpoints == "-"
            continue
        assert in_bytes(bank) == pytest.approx(size(run, "bank/*"), rel=0.1)
        name = method.partition(":")[0]
        assert 1 / 1.5 < in_bytes(checkpoints) / largest[name] < 1.5
    assert "in all: 3 of 3 runs to do: " in printed
    assert main([*command, "--dry-run"]) == 0
    assert "in all: none of 3 runs is to be done" in capsys.readouterr().out


def test_data_are_counted_decoded_and_no_feature_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CL_CLIPFIT_DATA", str(tmp_path / "cache"))
    command = [*TINY, "--strategy", "lda", "--tasks", "3", "--limit", "4"]
    assert main([*command, "--output", str(tmp_path / "runs"), "--dry-run"]) == 0
    image = 3 * 16 * 16
    assert (
        f"decoded data, in memory: training {24 * image / 1e3:.1f} kB"
        f" ({8 * image / 1e3:.1f} kB per task), test " in capsys.readouterr().out
    )
    assert not (tmp_path / "cache").exists()


def test_a_mistake_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--strategy", "full:epoch=3", "--dry-run"]) == 2
    assert "epoch" in capsys.readouterr().err


def test_several_class_orders_are_counted_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    orders = ["--class-order", "natural", "seed:1"]
    command = [*TINY, "--strategy", "lda", "full", *orders, "--output", str(tmp_path), "--dry-run"]
    assert main(command) == 0
    totals = [line for line in capsys.readouterr().out.splitlines() if "runs to do:" in line]
    counted = [line.partition(" runs to do")[0] for line in totals]
    assert counted == ["in all: 2 of 2", "in all: 2 of 2", "all 2 class orders: 4 of 4"]
