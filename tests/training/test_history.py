"""`history.jsonl`: what it says of a run, and that a broken run has every line once."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.faults.job import timeless
from cl_clipfit import UserError, load_results, read_history
from cl_clipfit.cli.app import main
from cl_clipfit.storage.checkpoints import Checkpoints
from cl_clipfit.storage.history import HistoryFile
from cl_clipfit.training import history
from cl_clipfit.training.journal import _is_history
from tests.support.kills import Killed
from tests.support.tiny import TINY

SMALL = [*TINY, "--tasks", "2", "--epochs", "2", "--batch-size", "8", "--lr", "0.01", "--quiet"]


def lines(output: Path, event: str) -> list[dict[str, Any]]:
    (result,) = load_results(output)
    return [line for line in read_history(result.path) if line["event"] == event]


def test_every_step_epoch_and_task_has_its_line(tmp_path: Path) -> None:
    assert main([*SMALL, "--strategy", "clipfit", "--output", str(tmp_path)]) == 0
    steps, epochs, tasks = (lines(tmp_path, event) for event in ("step", "epoch", "task"))
    (result,) = load_results(tmp_path)
    per_epoch = 3  # 24 images of each task
    assert [s["total_step"] for s in steps] == [*range(1, 2 * 2 * per_epoch + 1)]
    assert [(e["task"], e["stage"], e["epoch"], e["step"]) for e in epochs] == [
        (t, 1, e, e * per_epoch) for t in (1, 2) for e in (1, 2)
    ]
    for epoch in epochs:
        of_epoch = [s for s in steps if (s["task"], s["epoch"]) == (epoch["task"], epoch["epoch"])]
        assert len(of_epoch) == per_epoch
        assert epoch["loss"] == pytest.approx(np.mean([s["loss"] for s in of_epoch]), rel=1e-5)
        for name, value in epoch["terms"].items():
            assert value == pytest.approx(np.mean([s["terms"][name] for s in of_epoch]), rel=1e-5)
    for step in steps:
        assert {"cross-entropy"} < {*step["terms"]}
        assert sum(step["terms"].values()) == pytest.approx(step["loss"], rel=1e-5)
        assert step["peak_memory_bytes"] > 1 << 20
        assert step["seconds"] > 0
    recipe = result.content["recipe"]
    rates = [s["lr"] for s in steps if s["task"] == 1]
    assert rates[0] == recipe["lr"] == 0.01 == max(rates)
    assert rates == [s["lr"] for s in steps if s["task"] == 2]
    assert rates[-1] < max(rates)  # the rate of the step, not of the one that would come next
    assert rates[-1] > 0
    accuracies = [line["accuracy"] for line in tasks]
    assert accuracies == [None, *result.curves["accuracy"][1:]]
    assert [line["total_step"] for line in tasks] == [0, 6, 12]


def test_a_method_without_steps_has_a_line_for_each_task(tmp_path: Path) -> None:
    assert main([*SMALL, "--strategy", "lda", "--output", str(tmp_path)]) == 0
    assert [line["task"] for line in lines(tmp_path, "task")] == [0, 1, 2]
    assert not lines(tmp_path, "step")


def test_long_tasks_have_about_a_hundred_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_PER_TASK", 2)
    assert main([*SMALL, "--strategy", "clipfit", "--output", str(tmp_path)]) == 0
    assert [line["step"] for line in lines(tmp_path, "step")] == [3, 6, 3, 6]
    assert len(lines(tmp_path, "epoch")) == 4


def test_a_run_that_is_killed_anywhere_has_every_line_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: Any
) -> None:
    command = [*SMALL, "--strategy", "mergetune:landscape=off,merge_epochs=1"]
    assert main([*command, "--output", str(tmp_path / "whole")]) == 0
    save, calls = Checkpoints.save, [0]

    def save_or_die(self: Checkpoints, state: dict[str, Any]) -> None:
        calls[0] += 1
        if calls[0] % 4 == 0:  # the lines are there, and nothing counts them
            raise Killed
        save(self, state)

    monkeypatch.setattr(Checkpoints, "save", save_or_die)
    code, broken = None, 0
    while code != 0:
        if broken == 2:
            stop_at(2)  # within an epoch
        with contextlib.suppress(Killed):
            code = main([*command, "--output", str(tmp_path / "broken")])
        broken += code != 0
        assert broken < 20
    assert broken > 2
    whole, resumed = (
        [timeless(line) for line in read_history(load_results(tmp_path / name)[0].path)]
        for name in ("whole", "broken")
    )
    assert resumed == whole
    assert {line.get("stage") for line in whole} == {None, 1, 2}


def test_a_file_is_cut_where_a_checkpoint_counts(tmp_path: Path) -> None:
    file = HistoryFile(tmp_path)
    assert file.cut(100) == []
    file.add({"event": "task", "task": 0})
    size = file.flush()
    file.add({"event": "task", "task": 1})
    assert file.flush() == 2 * size
    assert file.cut(10 * size) == [{"event": "task", "task": 0}, {"event": "task", "task": 1}]
    assert file.cut(size) == [{"event": "task", "task": 0}] == read_history(tmp_path)
    file.path.write_text('{"event": "task"}\n[1]\n')
    with pytest.raises(UserError, match=r"history\.jsonl, line 2"):
        read_history(tmp_path)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / "history.jsonl").symlink_to(other)
    file = HistoryFile(tmp_path)
    file.add({"event": "task"})
    with pytest.raises(UserError, match="cannot write"):
        file.flush()
    with pytest.raises(UserError, match="symbolic link"):
        file.cut(0)
    assert other.read_text() == "mine"


@pytest.mark.parametrize(
    "saved",
    [
        [],
        {},
        {"bytes": -1, "before": 0, "sums": []},
        {"bytes": 1, "before": 0, "sums": [[["a"], 1]]},
    ],
)
def test_a_foreign_checkpoint_is_not_believed(saved: Any) -> None:
    assert not _is_history(saved)
    assert _is_history(None)
    assert _is_history(json.loads('{"bytes": 1, "before": 0, "sums": [], "rate": 0.5}'))
