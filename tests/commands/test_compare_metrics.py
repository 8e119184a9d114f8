"""`compare --metric`: metrics of a user's file, and of this package, on runs that are finished."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cl_clipfit import Predictions, load_results, read_predictions
from cl_clipfit.cli.app import main
from cl_clipfit.registry import Registry, describe
from tests.support.tiny import TINY

SHORT = [*TINY, "--tasks", "2", "--quiet"]
(MINE,) = re.findall(r"```python\n(.*?)```", Path("docs/metrics.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two methods, and a run without predictions."""
    folder = tmp_path_factory.mktemp("runs")
    command = [*SHORT, "--output", str(folder)]
    assert main([*command, "--strategy", "zero-shot", "lda"]) == 0
    assert main([*command, "--strategy", "vis", "--no-predictions"]) == 0
    return folder


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "other_task.py"
    file.write_text(MINE)
    return file


def test_metrics_are_columns_of_finished_runs(
    runs: Path, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = load_results(runs).with_metrics("worst-class", mine)
    assert results[0].metrics["worst-class"] is not None
    last = read_predictions(results[0].path)[-1]
    task_of_class = np.arange(6) // 3
    expected = (task_of_class[last.top[:, 0]] != last.tasks).mean()
    assert results[0].metrics["other-task"] == pytest.approx(100 * expected)
    capsys.readouterr()
    command = ["compare", str(runs), "--metric", "worst-class", str(mine), "--markdown"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "| strategy | average accuracy | last accuracy | worst class | other task |" in (
        printed.out
    )
    assert "1 of 3 runs keep no predictions" in printed.err
    rows = {line.split("|")[1].split()[0]: line for line in printed.out.splitlines() if "|" in line}
    for result in results:
        for name in ("worst-class", "other-task"):
            value = result.metrics[name]
            assert ("-" if value is None else f"{value:.1f}") in rows[result.label]
    assert rows["vis"].count(" - ") == 2
    least = min((r for r in results if r.label != "vis"), key=lambda r: r.metrics["other-task"])  # type: ignore[arg-type,return-value]
    assert rows[least.label].rstrip(" |").endswith("**")  # less is better
    assert main(["compare", str(runs), "--metric", str(mine), "--csv"]) == 0
    assert ",other-task,folder" in capsys.readouterr().out
    assert main(["compare", str(runs), "--metric", "top-5"]) == 0
    assert "top-5" in capsys.readouterr().out


def test_functions_are_metrics_in_python(runs: Path) -> None:
    def images(rows: list[Predictions], result: dict[str, Any]) -> float:
        return len(rows[0].labels)

    results = load_results(runs).with_metrics(images)
    counts = {result.metrics["images"] for result in results}
    assert counts == {None, sum(task["test_samples"] for task in results[0].content["tasks"])}
    assert "images" in results.to_markdown()
    assert "images" not in load_results(runs)[0].metrics  # nothing on disk has changed


def test_bad_metrics_are_refused_in_a_line(
    runs: Path, mine: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    def attempt(metric: object) -> str:
        return refused("compare", runs, "--metric", str(metric))

    assert "unknown metric 'worst'. Did you mean 'worst-class'" in attempt("worst")
    assert "there is no such file" in attempt(tmp_path / "none.py")
    for code, message in {
        "def metric(rows, result): return 1 / 0": "fails on .*ZeroDivisionError: division by zero",
        "def metric(rows, result): return float('nan')": "is nan on .*return None instead",
        "def metric(rows, result): return 'x'": "fails on .*ValueError",
        "metrics = 1": "it defines no function metric",
        "import nothing_like_it": "fails to import: ModuleNotFoundError",
        "def (": "cannot be read: line 1",
    }.items():
        mine.write_text(code)
        line = attempt(mine)
        assert re.search(message, line), line
    (without,) = runs.glob("*-vis-*")
    assert "none of 1 runs keeps predictions" in refused(
        "compare", without, "--metric", "worst-class"
    )


def test_metrics_are_listed_and_shown(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "metrics"]) == 0
    out = capsys.readouterr().out
    assert "calibration-error" in out
    assert "Expected calibration error" in out
    assert main(["info", "other-task", "--plugin", str(mine)]) == 0
    assert (
        "(metric): Share of the images learned that are taken for a class of another task."
        in capsys.readouterr().out
    )
    assert describe(mine).kind == "metrics"


def test_packages_bring_metrics(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[cl_clipfit.metrics]\nof-mine = other_task\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert Registry().get("metrics", "of-mine").metric_function().__name__ == "metric"
