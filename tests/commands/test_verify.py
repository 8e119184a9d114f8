"""`run.py verify` on real runs: well as they are, and with every kind of damage done to a copy."""

import json
import math
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cl_clipfit import metrics
from cl_clipfit.bank.store import DeltaBank
from cl_clipfit.cli.app import main
from cl_clipfit.commands import verify
from cl_clipfit.errors import program
from cl_clipfit.experiment.reopen import MERGED_FROM
from cl_clipfit.storage.files import seal
from cl_clipfit.storage.lock import LOCK
from cl_clipfit.storage.manifest import MANIFEST, write_manifest
from tests.support.tiny import PLUGIN, TINY

SHORT = [*TINY, "--tasks", "3", "--lr", "0.01", "--probe", "tiny-stream", "--quiet"]
IMAGES = 16  # test images of every task
Edit = Callable[[dict[str, Any]], Any]


def folder_of(output: Path, name: str) -> Path:
    """Return the folder of a run, with a manifest."""
    (found,) = output.glob(f"*-{name}-s0-*")
    write_manifest(found)
    return found


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output folder of runs of one method that trains, one that merges, one without."""
    made = tmp_path_factory.mktemp("runs")
    methods = ["--strategy", "zero-shot", "clipfit", "mergetune:landscape=off,merge_epochs=1"]
    assert main([*SHORT, *methods, "--output", str(made)]) == 0
    return made


@pytest.fixture
def run(output: Path, tmp_path: Path) -> Path:
    """Return a copy of a run, to damage."""
    copy = tmp_path / "run"
    shutil.copytree(folder_of(output, "clipfit"), copy)
    return copy


def well(capsys: pytest.CaptureFixture[str], run: Path) -> list[str]:
    """Verify a run with which all is well; return what was printed."""
    capsys.readouterr()
    assert main(["verify", str(run)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out.splitlines()


def problems(capsys: pytest.CaptureFixture[str], run: Path) -> list[str]:
    """Verify a run with which something is wrong; return what."""
    capsys.readouterr()
    assert main(["verify", str(run)]) == 2
    *lines, last = capsys.readouterr().err.splitlines()
    found = [line.removeprefix("problem: ") for line in lines]
    assert all(line.startswith("problem: ") for line in lines)
    count = f"{len(found)} problem{'s' if len(found) > 1 else ''}"
    assert last == f"error: {run}: {count}, the first: {found[0]}"
    return found


def edit(run: Path, change: Edit) -> None:
    """Change what `result.json` says, and seal the folder again."""
    file = run / "result.json"
    result = json.loads(file.read_text())
    change(result)
    file.write_text(json.dumps(result, indent=1) + "\n")
    write_manifest(run)


def test_all_is_well_with_a_run_as_it_was_written(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    files = len(before) - (run / MANIFEST in before)
    assert well(capsys, run) == [
        f"manifest: {files} files as written",
        "config.yaml: settings of clipfit, seed 0",
        "bank: 3 tasks, 6 files as written",
        "tables: 3, every accuracy a whole number of test images",
        "metrics: 20 re-derived",
        "curves: 5 re-derived",
        "accuracy_matrix.csv: as in result.json",
    ]
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_what_a_merge_was_compared_with_is_re_derived_too(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder_of(output, "mergetune"), run)
    result = json.loads((run / "result.json").read_text())
    names = [*result["merge"]["compared"]]
    assert f"metrics: {20 * (1 + len(names))} re-derived" in well(capsys, run)
    assert len(names) > 0

    def change(result: dict[str, Any]) -> None:
        result["merge"]["compared"][names[0]]["metrics"]["last_accuracy"] += 1

    edit(run, change)
    (found,) = problems(capsys, run)
    assert f"merge.compared.{names[0]}: metrics: last_accuracy is " in found


def test_a_method_that_trains_nothing_needs_no_bank_and_no_torch(output: Path) -> None:
    code = (
        "import sys; from cl_clipfit.cli.app import main; code = main(sys.argv[1:]);"
        "print(code, [m for m in ('torch', 'avalanche', 'matplotlib') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, "verify", str(folder_of(output, "zero-shot"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "bank: none" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 []"


def test_a_merged_run_and_evaluations_of_banks(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / folder_of(output, "clipfit").name
    shutil.copytree(folder_of(output, "clipfit"), copy)
    assert main(["bank", "eval", str(copy), "--mode", "mean", "routed", *PLUGIN]) == 0
    assert main(["merge", str(copy), "--method", "mean", *PLUGIN]) == 0
    write_manifest(copy)
    assert "metrics: 80 re-derived" in well(capsys, copy)  # own, mean, routed, and its own classes
    merged = folder_of(tmp_path, "clipfit+mean")
    assert MERGED_FROM in (merged / "config.yaml").read_text()
    assert "metrics: 20 re-derived" in well(capsys, merged)
    file = copy / "bank-eval.json"
    evaluation = json.loads(file.read_text())
    evaluation["modes"][1]["chosen_labels"]["metrics"]["forgetting"] += 1e-6
    file.write_text(json.dumps(evaluation))
    write_manifest(copy)
    (found,) = problems(capsys, copy)
    assert found.startswith("bank-eval.json, modes.1.chosen_labels: metrics: forgetting is ")
    file.write_text("{")
    write_manifest(copy)
    (found, *_) = problems(capsys, copy)
    assert found == f"bank-eval.json is damaged: repeat {program()} bank eval"


def test_what_a_plugin_adds_to_a_result_is_no_table_of_the_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(run, lambda result: result.update(extra=[{"metrics": {"a": 1}}, {"x": {"metrics": 2}}]))
    assert "metrics: 20 re-derived" in well(capsys, run)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "bank-eval.json is damaged: repeat "),
        ("{}", "bank-eval.json is damaged: repeat "),
        ('{"modes": 3}', "bank-eval.json is damaged: repeat "),
        ('{"modes": [3]}', "bank-eval.json is damaged: repeat "),
        ('{"modes": [{}]}', "result.json is not what a run writes: tables cannot be checked: Key"),
    ],
)
def test_an_evaluation_of_another_shape(
    run: Path, capsys: pytest.CaptureFixture[str], text: str, problem: str
) -> None:
    (run / "bank-eval.json").write_text(text)
    write_manifest(run)
    assert problems(capsys, run)[0].startswith(problem)


def test_a_stream_of_very_many_tasks_is_verified_soon() -> None:
    count = 40_000
    table = [[50.0] * count] * 2
    curves = metrics.curves(table, table, [2] * count, {})
    result = {
        "accuracy_matrix": table, "all_classes_matrix": table, "probes": {}, "merge": None,
        "tasks": [{"test_samples": 2}] * count, "environment": {"python": "3.11.0"},
        "curves": {**curves, "zero_shot": [None, *[50.0] * count]},
    }  # fmt: skip
    started = time.process_time()
    assert verify._check_curves(Path("absent"), result) == (f"curves: {len(curves)} re-derived", [])
    assert time.process_time() - started < 1


# ---- files that are not as written ---------------------------------------------------------------


def test_a_run_of_an_older_version_is_told_how_to_get_a_manifest(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / MANIFEST).unlink()
    (found,) = problems(capsys, run)
    assert "MANIFEST.sha256 is missing" in found
    assert "--fresh" in found


def test_every_problem_has_its_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray((run / "bank/task-002.safetensors").read_bytes())
    data[-1] ^= 1
    (run / "bank/task-002.safetensors").write_bytes(data)
    (run / "curves.png").unlink()
    (run / "config.yaml").write_text("seed: many\n")
    (run / "accuracy_matrix.csv").write_bytes(b"")
    found = problems(capsys, run)
    assert [line.split()[0] for line in found[:4]] == [
        "accuracy_matrix.csv", "bank/task-002.safetensors", "config.yaml", "curves.png",
    ]  # fmt: skip
    assert f"{run}/config.yaml: seed: " in found[4]
    assert "task-002.safetensors is damaged" in found[5]
    assert found[6] == "accuracy_matrix.csv is not what result.json says"
    assert len(found) == 7


@pytest.mark.parametrize("name", ["config.yaml", "accuracy_matrix.csv", "bank/index.json"])
def test_a_file_that_is_missing(run: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (run / name).unlink()
    write_manifest(run)  # that of somebody who wants to hide it
    (found,) = problems(capsys, run)
    assert f"{run / name}" in found


def test_no_run_and_no_result(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (tmp_path, tmp_path / "absent", run / "curves.png"):
        assert main(["verify", str(place)]) == 2
        assert "not a run folder" in capsys.readouterr().err
    (run / "result.json").unlink()
    write_manifest(run)
    assert "result.json is missing" in problems(capsys, run)[0]
    for text in ("{", "[" * 100_000, "\0", '{"complete": true, "schema": 99}'):
        (run / "result.json").write_text(text)
        write_manifest(run)
        assert len(problems(capsys, run)) == 1


@pytest.mark.parametrize("state", ["in progress", "killed", "stopped"])
def test_a_run_that_has_not_ended_is_said_as_that(
    run: Path, refused: Callable[..., str], state: str
) -> None:
    """No advice that would discard its checkpoints."""
    (run / "result.json").unlink()
    (run / MANIFEST).unlink()
    other = subprocess.Popen(["sleep", "60"])
    try:
        if state != "stopped":
            holder = {"pid": other.pid, "host": socket.gethostname(), "since": "today"}
            (run / LOCK).write_bytes(seal(holder))
        if state == "killed":
            other.kill()
            other.wait()
        line = refused("verify", run)
    finally:
        other.kill()
        other.wait()
    assert "--fresh" not in line
    if state == "in progress":
        assert f"the run is in progress: process {other.pid} on {socket.gethostname()}" in line
    else:
        assert "this run was interrupted: repeat the command that started it" in line


def test_files_of_another_run(run: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = folder_of(output, "mergetune")
    shutil.copy(other / "config.yaml", run / "config.yaml")
    bank = (run / "bank/index.json").read_bytes()
    write_manifest(run)
    (found,) = problems(capsys, run)
    assert found == "config.yaml has strategy ['mergetune'], result.json clipfit"
    assert bank == (run / "bank/index.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda r: r["seeds"].update(data_order=5), "config.yaml has data_seed 0, result.json 5"),
        (lambda r: r["seeds"].update(initialisation=6), "config.yaml has init_seed 0, result.js"),
        (lambda r: r["recipe"].update(epochs=99), "config.yaml has epochs 1, result.json 99"),
        (lambda r: r["recipe"].update(lr=0.5), "config.yaml has lr 0.01, result.json 0.5"),
        (lambda r: r["recipe"].pop("batch_size"), "config.yaml has batch_size 16, result.json Non"),
    ],
)
def test_settings_that_config_and_result_both_hold_must_agree(
    run: Path, capsys: pytest.CaptureFixture[str], change: Edit, problem: str
) -> None:
    edit(run, change)
    (found,) = problems(capsys, run)
    assert found.startswith(problem)


def test_a_hundred_problems_are_printed_and_the_others_counted(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(150):
        (run / f"more-{number:03d}").touch()
    assert main(["verify", str(run)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[99:101] == [
        "problem: more-099 is not in the manifest",
        "problem: and 50 more",
    ]
    assert "150 problems, the first: more-000" in lines[101]
    assert len(lines) == 102


def test_a_bank_of_fewer_tasks_or_another_model(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = DeltaBank.open(run / "bank")
    values, base = bank.load(1), {**bank.index["base"], "weights_sha256": "0" * 64}
    DeltaBank.create(run / "bank", base, "clipfit").append(values, ["a"])
    write_manifest(run)
    assert problems(capsys, run) == [
        "the bank holds 1 tasks, result.json is of 3",
        "the bank belongs to another model than result.json",
    ]


# ---- numbers that do not follow ------------------------------------------------------------------


def last_digit(value: float) -> float:
    """Return the nearest other number."""
    return math.nextafter(value, 1000.0)


METRICS = [
    "average_accuracy", "last_accuracy", "learning_accuracy", "forgetting", "backward_transfer",
    "forgetting_all_classes", "forward_transfer", "transfer", "retention", "mtil_average",
    "mtil_last", "probe_accuracy",
]  # fmt: skip


@pytest.mark.parametrize("name", METRICS)
def test_the_last_bit_of_a_metric_counts(
    run: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    def change(result: dict[str, Any]) -> None:
        result["metrics"][name] = last_digit(result["metrics"][name])

    edit(run, change)
    (found,) = problems(capsys, run)
    assert found.startswith(f"result.json: metrics: {name} is ")


def test_another_python_may_round_its_sums_otherwise(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(result: dict[str, Any]) -> None:
        result["environment"]["python"] = "3.99.0"
        result["metrics"]["average_accuracy"] = last_digit(result["metrics"]["average_accuracy"])

    edit(run, change)
    well(capsys, run)

    def more(result: dict[str, Any]) -> None:
        result["metrics"]["average_accuracy"] += 1e-6

    edit(run, more)
    assert len(problems(capsys, run)) == 1


def set_to(*path: Any, value: Any = None) -> Edit:
    """Return a change of one value in a result."""

    def change(result: Any) -> None:
        for key in path[:-1]:
            result = result[key]
        result[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            set_to("accuracy_matrix", 3, 0, value=55.5),
            "accuracy_matrix, row 3, task 1: 55.5 cannot",
        ),
        (set_to("accuracy_matrix", 0, 0, value=50.0), "accuracy_matrix, row 0, task 1: 50.0"),
        (set_to("accuracy_matrix", 2, 1), "accuracy_matrix, row 2, task 2: None cannot be"),
        (set_to("task_aware_matrix", 1, 2, value=120.0), "task_aware_matrix, row 1, task 3: 120.0"),
        (set_to("all_classes_matrix", 1, 2, value="50"), "run writes: all_classes_matrix.1.2: "),
        (
            set_to("all_classes_matrix", 1, 2, value=float("nan")),
            "run writes: all_classes_matrix.1.2: ",
        ),
        (set_to("all_classes_matrix", 1, value=[50.0]), "tables need one row per task"),
        (set_to("curves", "accuracy", 3, value=1.0), "curves: accuracy: 3 is 1.0, the tables give"),
        (set_to("curves", "accuracy", value=[]), "the curve accuracy needs one value per row"),
        (set_to("curves", "zero_shot", 3, value=1.0), "zero_shot, task 3: 1.0 cannot be"),
        (set_to("curves", "more", value=[1.0]), "more: 0 is 1.0, the tables give no such number"),
        (set_to("metrics", "forgetting"), "metrics: forgetting is None, the tables give"),
        (set_to("metrics", "base", value=3.0), "metrics: base is 3.0, the tables give None"),
        (set_to("metrics", "luck", value=3.0), "metrics: luck is 3.0, the tables give no such"),
        (set_to("metrics", "last_accuracy", value=True), "run writes: metrics.last_accuracy: "),
        (set_to("metrics", value=[]), "result.json is not what a run writes: metrics: "),
        (set_to("tasks"), "result.json is not what a run writes: tasks: "),
        (set_to("model"), "result.json is not what a run writes: model: "),
        (set_to("probes", value={"x": [1.0, 9.0]}), "metrics: retention is"),
        (set_to("seed", value=7), "config.yaml has seed [0], result.json 7"),
        (set_to("environment", value={}), "result.json is not what a run writes: metrics"),
    ],
)
def test_a_number_that_does_not_follow(
    run: Path, capsys: pytest.CaptureFixture[str], change: Edit, problem: str
) -> None:
    edit(run, change)
    assert any(problem in line for line in problems(capsys, run))


def test_a_table_that_fits_but_is_another_one(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One image more or less is a number that can be: the CSV and all that is derived tell."""

    def change(result: dict[str, Any]) -> None:
        row = result["accuracy_matrix"][3]
        row[1] += 100 / IMAGES if row[1] < 100 else -100 / IMAGES

    edit(run, change)
    found = problems(capsys, run)
    assert not any("cannot be" in line for line in found)
    assert "accuracy_matrix.csv is not what result.json says" in found
    assert any(line.startswith("result.json: metrics: last_accuracy") for line in found)
    assert any(line.startswith("result.json: curves: accuracy: 3") for line in found)


# ---- runs of older versions ----------------------------------------------------------------------


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this version one with another metric and another curve."""
    summarize, curves = metrics.summarize, metrics.curves
    monkeypatch.setattr(metrics, "summarize", lambda *t: {**summarize(*t), "luck": 5.0})
    monkeypatch.setattr(metrics, "curves", lambda *t: {**curves(*t), "mood": [1.0, None, 2.0, 3.0]})


@pytest.mark.usefixtures("newer")
def test_numbers_that_came_after_a_run_are_absent_in_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = well(capsys, run)
    assert "metrics: 20 re-derived; absent, as in runs of an older version: luck" in lines
    assert "curves: 5 re-derived; absent, as in runs of an older version: mood" in lines


@pytest.mark.usefixtures("newer")
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (set_to("metrics", "luck", value=4.0), "metrics: luck is 4.0, the tables give 5.0"),
        (set_to("metrics", "luck"), "metrics: luck is None, the tables give 5.0"),
        (set_to("metrics", "odds", value=4.0), "metrics: odds is 4.0, the tables give no such"),
        (set_to("curves", "mood", value=[1.0]), "curves: mood: 1 is missing, the tables give None"),
        (set_to("metrics", "forgetting", value=1e9), "metrics: forgetting is 1000000000.0"),
    ],
)
def test_numbers_that_are_there_must_be_right(
    run: Path, capsys: pytest.CaptureFixture[str], change: Edit, problem: str
) -> None:
    edit(run, change)
    assert any(problem in line for line in problems(capsys, run))
