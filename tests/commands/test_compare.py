"""`compare`, `load_results` and `Results` on real runs of the tiny stream."""

import csv
import io
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cl_clipfit import Results, load_results
from cl_clipfit.cli.app import main
from cl_clipfit.errors import UserError
from cl_clipfit.report.paired import differences
from tests.support.tiny import TINY

QUICK = ["--tasks", "2", "--epochs", "1", "--batch-size", "8", "--quiet"]
METHODS = ["zero-shot", "full", "lda"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three methods, three seeds each."""
    folder = tmp_path_factory.mktemp("runs")
    command = [*TINY, "--strategy", *METHODS, "--seed", "0", "1", "2", "--output", str(folder)]
    assert main([*command, *QUICK, "--lr", "0.01"]) == 0
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line of an error."""
    capsys.readouterr()
    assert main(["compare", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_a_folder_of_runs_becomes_one_table(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(runs)]) == 0
    out = capsys.readouterr().out
    assert "mean of 3 seeds" in out
    assert all(name in out for name in METHODS)
    assert "difference from" in out
    assert "paired t-test" in out


def test_standard_deviations_stand_beside_intervals_where_asked(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = [r.metrics["last_accuracy"] for r in load_results(runs) if r.label == "full"]
    half = stats.t.ppf(0.975, 2) * stats.sem(last)
    wanted = f"{np.mean(last):.1f} ± {half:.1f} ({np.std(last, ddof=1):.1f})"
    assert main(["compare", str(runs), "--std", "--markdown"]) == 0
    out = capsys.readouterr().out
    assert "mean of 3 seeds ± 95 % interval (standard deviation)" in out
    assert wanted in next(line for line in out.splitlines() if line.startswith("| full"))


def test_differences_are_those_of_scipy(runs: Path) -> None:
    results = load_results(runs)
    groups = {label: [r.content for r in results if r.label == label] for label in results.labels}
    (one,) = [d for d in differences(groups, "lda", ["last_accuracy"]) if d.label == "full"]
    last = {
        label: [r.metrics["last_accuracy"] for r in sorted(results, key=lambda r: r.seed)
                if r.label == label]
        for label in ("full", "lda")
    }  # fmt: skip
    with warnings.catch_warnings(action="ignore"):  # of differences that are nearly equal
        expected = stats.ttest_rel(last["full"], last["lda"])
    assert one.pairs == 3
    assert one.mean == pytest.approx(np.mean(last["full"]) - np.mean(last["lda"]))
    assert one.p == pytest.approx(expected.pvalue)
    half = expected.confidence_interval(0.95).high - one.mean
    assert one.interval == pytest.approx(half)


def test_only_common_seeds_are_paired() -> None:
    def run(seed: int, accuracy: float | None, order: tuple[int, ...] = (0, 1)) -> dict[str, Any]:
        return {"seed": seed, "class_order": list(order), "metrics": {"last": accuracy}}

    groups = {
        "a": [run(0, 80.0), run(1, 90.0), run(2, 70.0)],
        "b": [run(2, 71.0), run(0, 70.0), run(5, 1.0)],
        "other order": [run(0, 1.0, (1, 0))],
        "one": [run(1, 93.5)],
        "none": [run(0, None)],
        "same": [run(0, 80.0), run(1, 90.0)],
    }
    found = {d.label: d for d in differences(groups, "a", ["last"])}
    assert set(found) == {"b", "one", "same"}
    assert (found["b"].mean, found["b"].pairs) == (-4.5, 2)
    assert (found["one"].mean, found["one"].p, found["one"].interval) == (3.5, None, None)
    assert (found["same"].mean, found["same"].p) == (0.0, 1.0)


@pytest.mark.parametrize("form", ["markdown", "latex", "csv"])
def test_tables_are_printed_in_other_forms(
    form: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(runs), f"--{form}", "--label", "full=Fine_tuning"]) == 0
    out = capsys.readouterr().out
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(out)))
        assert len(rows) == 9
        assert {row["strategy"] for row in rows} == {"zero-shot", "lda", "Fine_tuning"}
    elif form == "latex":
        assert r"Fine\_tuning" in out
        assert out.count(r"\\") == 4
        assert r"\textbf{" in out
        assert r"$\pm$" in out
    else:
        assert "| Fine_tuning " in out
        assert "**" in out


def test_runs_of_other_streams_stand_in_tables_of_their_own(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = [*TINY, "--strategy", "lda", "--output", str(tmp_path), "--tasks", "3", "--quiet"]
    assert main(other) == 0
    capsys.readouterr()
    assert main(["compare", str(runs), str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "2 protocols, a table for each" in captured.err
    assert captured.out.count("tiny-stream: ") == 2
    assert main(["compare", str(runs), str(tmp_path), "--mixed", "--markdown"]) == 0
    out = capsys.readouterr().out
    assert out.count("tiny-stream: ") == 1
    assert "| lda [3]" in out


def test_figures_and_numbers_are_written_where_asked(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(runs), "--output", str(tmp_path / "new")]) == 0
    files = sorted(path.suffix for path in (tmp_path / "new").iterdir())
    assert files == [".csv", ".png", ".svg"]
    assert capsys.readouterr().err.count("written: ") == 3


def test_settings_under_one_label_are_told_apart(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*TINY, "--strategy", "full", "--seed", "0", "1", "2", "--output", str(tmp_path)]
    assert main([*command, *QUICK, "--lr", "0.001"]) == 0
    assert main(["compare", str(runs), str(tmp_path)]) == 0
    err = capsys.readouterr().err
    assert "differ in their settings or code" in err
    labels = load_results(runs, tmp_path).labels
    assert len([label for label in labels if label.startswith("full (")]) == 2
    assert "full" not in labels
    # Each of both still is the mean of its three seeds; a run given twice counts once.
    results = load_results(runs, tmp_path, runs)
    assert len(results) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (["RUNS", "--against", "ful"], "Did you mean 'full'"),
        (["RUNS", "--label", "ful=x"], "Did you mean 'full'"),
        (["RUNS", "--label", "full"], "expected LABEL=NAME"),
        (["RUNS", "--latex", "--csv"], "--latex and --csv: choose one"),
        (["EMPTY"], "no finished run is in it"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_line(
    arguments: list[str], message: str, runs: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    places = {"RUNS": str(runs), "EMPTY": str(tmp_path)}
    assert message in refused(capsys, *(places.get(a, a) for a in arguments))


def test_a_damaged_result_is_named(runs: Path, tmp_path: Path) -> None:
    (run, *_) = sorted(runs.glob("*/result.json"))
    copy = Path(shutil.copytree(run.parent, tmp_path / "copy"))
    content = json.loads(run.read_text())
    del content["metrics"]
    (copy / "result.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not what a run writes: metrics"):
        load_results(tmp_path)


def test_results_are_tables_arrays_frames_and_figures(runs: Path) -> None:
    results = load_results(runs)
    assert isinstance(results, Results)
    assert sorted(results.labels) == sorted(METHODS)
    contents = [r.content for r in results if r.label == "full"]
    mean = np.mean([np.array(c["all_classes_matrix"], dtype=float) for c in contents], axis=0)
    np.testing.assert_allclose(results.matrix("full", "all"), mean)
    assert np.isnan(results.matrix("full")[0]).all()
    with pytest.raises(KeyError, match="Did you mean 'full'"):
        results.matrix("ful")
    with pytest.raises(ValueError, match="expected one of seen, all, task"):
        results.matrix("full", "tasks")
    assert results._repr_html_().count("<tr>") == 4
    assert results.to_latex().count(r"\\") == 4
    axes = results.plot().axes
    assert [line.get_label() for line in axes[0].lines][:1] == ["zero-shot"]


def test_a_frame_has_a_row_per_run(runs: Path) -> None:
    pytest.importorskip("pandas")
    results = load_results(runs)
    frame = results.to_frame()
    assert len(frame) == 9
    grouped = frame.groupby("strategy")["last_accuracy"].mean()
    full = [r.metrics["last_accuracy"] for r in results if r.label == "full"]
    assert grouped["full"] == pytest.approx(np.mean(full))


def test_several_class_orders_are_averaged_as_seeds_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*TINY, "--strategy", "zero-shot", "lda", "--output", str(tmp_path), "--quiet"]
    orders = ["seed:1", "seed:2", "seed:1", "natural"]  # one of them twice
    assert main([*command, "--class-order", *orders, "--seed", "0,1"]) == 0
    out = capsys.readouterr().out
    assert "mean of 6 runs in 3 class orders ± 95 % interval" in out
    found = [r.content for r in load_results(tmp_path) if r.label == "lda"]
    assert len({tuple(content["class_order"]) for content in found}) == 3
    assert len(found) == 6
    mean = np.mean([content["metrics"]["average_accuracy"] for content in found])
    row = next(line for line in out.splitlines() if "│ lda" in line)
    assert f" {mean:.1f} " in row
    (alone,) = [c for c in found if c["seed"] == 0 and c["class_order"] == list(range(6))]
    assert main([*command[:-3], "--output", str(tmp_path / "one"), "--quiet"]) == 0
    one = [r.content for r in load_results(tmp_path / "one") if r.label == "lda"]
    assert one[0]["digest"] == alone["digest"]
