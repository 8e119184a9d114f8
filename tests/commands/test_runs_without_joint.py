"""Runs of versions without joint accuracy and retention are verified, compared and evaluated."""

import json
from pathlib import Path
from typing import Any

import pytest

from cl_clipfit.cli.app import main
from cl_clipfit.storage.manifest import write_manifest
from tests.support.tiny import PLUGIN, TINY

COMMAND = [*TINY, "--strategy", "clipfit", "--probe", "tiny-stream", "--lr", "0.01", "--quiet"]
NAMES = ("joint_accuracy", "joint_retention")


def folder_of(output: Path) -> Path:
    (path,) = output.glob("*/result.json")
    return path.parent


def edit(run: Path, change: Any) -> None:
    """Change the result of a run, and seal it again."""
    result = json.loads((run / "result.json").read_text())
    change(result)
    (run / "result.json").write_text(json.dumps(result))
    write_manifest(run)


def remove(result: dict[str, Any]) -> None:
    """Remove what an older version did not write."""
    for name in NAMES:
        del result["metrics"][name], result["curves"][name]
    del result["joint"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    assert main([*COMMAND, "--output", str(tmp_path)]) == 0
    return folder_of(tmp_path)


def test_an_older_run_is_verified_evaluated_merged_and_shown(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(run, remove)
    capsys.readouterr()
    assert main(["verify", str(run)]) == 0
    printed = capsys.readouterr().out
    for line in ("metrics: 18 re-derived", "curves: 3 re-derived"):
        assert f"{line}; absent, as in runs of an older version: {NAMES[0]}, {NAMES[1]}" in printed
    assert main(["bank", "eval", str(run), "--mode", "mean", "latest", *PLUGIN]) == 0
    modes = json.loads((run / "bank-eval.json").read_text())["modes"]
    assert all(len(mode["joint"]["stream"]) == 3 for mode in modes)
    assert main(["merge", str(run), "--method", "mean", *PLUGIN]) == 0
    capsys.readouterr()
    assert main([*COMMAND, "--output", str(run.parent)]) == 0  # shows it, trains nothing
    assert "joint" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("joint", "stream", 1), 55.5, "joint.stream, row 1: 55.5 cannot be"),
        (("joint", "stream", 0), 50.0, "joint.stream, row 0: 50.0 cannot be"),
        (("joint", "zero_shot", "tiny-stream", 2), 0.5, "metrics: joint_retention is"),
        (("joint", "stream"), [None], "curves: joint_accuracy: 1 is"),
        (("joint",), None, "metrics: joint_accuracy is"),
        (("joint",), {}, "result.json is not what a run writes: joint.stream"),
        (("curves", "joint_retention"), [0.0], "the curve joint_retention needs one value per row"),
    ],
)
def test_a_joint_number_that_does_not_follow(
    run: Path, path: tuple[Any, ...], value: Any, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(result: Any) -> None:
        for key in path[:-1]:
            result = result[key]
        result[path[-1]] = value

    edit(run, change)
    capsys.readouterr()
    assert main(["verify", str(run)]) == 2
    assert problem in capsys.readouterr().err
