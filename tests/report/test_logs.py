"""`--log`: what TensorBoard, Weights & Biases and a spreadsheet get is what the history says."""

import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cl_clipfit import load_results, read_history
from cl_clipfit.cli.app import main
from cl_clipfit.report.logs import flat, open_logs
from tests.support.tiny import TINY

SMALL = [*TINY, "--tasks", "2", "--epochs", "1", "--batch-size", "12", "--quiet"]
LINES: list[dict[str, Any]] = [
    {"event": "task", "task": 0, "total_step": 0, "accuracy": None},
    {
        "event": "step", "task": 1, "stage": 1, "epoch": 1, "step": 1, "total_step": 1,
        "lr": 1e-5, "loss": 1.5, "terms": {"cross-entropy": 1.25},
    },
    {"event": "task", "task": 1, "total_step": 1, "accuracy": 75.0},
]  # fmt: skip


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run that was logged as it trained."""
    made = tmp_path_factory.mktemp("runs")
    command = [*SMALL, "--strategy", "clipfit", "--output", str(made)]
    assert main([*command, "--log", "tensorboard", "csv"]) == 0
    return made


def of_csv(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a CSV file without empty cells."""
    with file.open() as rows:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(rows)]


def of_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the points of each curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_a_spreadsheet_has_every_line_and_every_digit(output: Path) -> None:
    (result,) = load_results(output)
    expected = [
        {key: str(value) for key, value in flat(line).items() if value is not None}
        for line in read_history(result.path)
    ]
    assert of_csv(output / "logs" / "csv" / f"{result.path.name}.csv") == expected
    assert sum(line["event"] == "step" for line in expected) == 4


def test_tensorboard_has_every_point(output: Path) -> None:
    (result,) = load_results(output)
    curves = of_tensorboard(output / "logs" / "tensorboard" / result.path.name)
    lines = read_history(result.path)
    for tag, event, key in (
        ("step/loss", "step", "loss"), ("step/lr", "step", "lr"), ("epoch/loss", "epoch", "loss"),
    ):  # fmt: skip
        points = [(s["total_step"], s[key]) for s in lines if s["event"] == event]
        assert [step for step, _ in curves[tag]] == [step for step, _ in points]
        values = [value for _, value in curves[tag]]
        assert values == pytest.approx([value for _, value in points], rel=1e-6)
    accuracies = [line["accuracy"] for line in lines if line["event"] == "task"][1:]
    assert curves["task/accuracy"] == [
        (task, pytest.approx(value)) for task, value in enumerate(accuracies, 1)
    ]
    assert "step/terms/cross-entropy" in curves


def test_a_finished_run_is_logged_from_its_history(output: Path, tmp_path: Path) -> None:
    (result,) = load_results(output)
    file = output / "logs" / "csv" / f"{result.path.name}.csv"
    before = file.read_text()
    file.unlink()
    command = [*SMALL, "--strategy", "clipfit", "--output", str(output)]
    assert main([*command, "--log", "csv", "tensorboard"]) == 0
    assert file.read_text() == before
    curves = of_tensorboard(output / "logs" / "tensorboard" / result.path.name)
    assert len(curves["step/loss"]) == 4  # not twice


def test_weights_and_biases_works_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    with open_logs(["wandb"], tmp_path, "a-run", {"lr": 0.5}) as (log,):
        for line in LINES:
            log.write(line)
    (file,) = log.place.glob("offline-run-*/*.wandb")
    points: list[dict[str, str]] = []
    until = time.monotonic() + 60
    while len(points) < len(LINES) and time.monotonic() < until:  # its service writes on its own
        time.sleep(0.05)
        points = [
            {(i.key or "/".join(i.nested_key)): i.value_json for i in record.history.item}
            for record in map(pb.Record.FromString, records(file.read_bytes()))
            if record.WhichOneof("record_type") == "history"
        ]
    found = [{k: json.loads(v) for k, v in p.items() if not k.startswith("_")} for p in points]
    assert found == [
        {"task": 0, "total_step": 0},
        {"step/lr": 1e-5, "step/loss": 1.5, "step/terms/cross-entropy": 1.25, "task": 1,
         "total_step": 1},
        {"task/accuracy": 75.0, "task": 1, "total_step": 1},
    ]  # fmt: skip


def records(data: bytes) -> list[bytes]:
    """Return the records of a file in LevelDB's log format, after its header of seven bytes."""
    found, at, begun = [], 7, b""
    while at + 7 <= len(data):
        if (1 << 15) - at % (1 << 15) < 7:  # the rest of a block is empty
            at += (1 << 15) - at % (1 << 15)
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        begun += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            found.append(begun)
            begun = b""
    return found


def test_what_cannot_start_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cl_clipfit.errors import UserError

    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(UserError, match="--log wandb: pip install wandb"),
        open_logs(["wandb"], tmp_path, "a-run", {}),
    ):
        pass
    (tmp_path / "logs").write_text("a file")
    with (
        pytest.raises(UserError, match="cannot write"),
        open_logs(["csv"], tmp_path, "a-run", {}) as (log,),
    ):
        log.write(LINES[0])
