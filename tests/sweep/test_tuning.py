"""`--tune`: what is searched, what it is scored on, and what it says about that."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cl_clipfit.cli.app import main
from cl_clipfit.commands import sweep as command
from cl_clipfit.report.results import load_results
from cl_clipfit.sweep.engines import Event, Work
from cl_clipfit.sweep.file import read_sweep
from cl_clipfit.sweep.job import Job
from cl_clipfit.sweep.planning import plan_jobs
from tests.support.feature_files import arrays

pytest.importorskip("optuna")

SWEEP = """
common: {{scenario: features, data_dir: {file}, tasks: 3}}
grid: {{strategy: [lda, zero-shot], seed: [0, 100], class_order: [natural, "seed:11"]}}
tune:
  lda.shrinkage: {{low: 0.01, high: 1.0, log: true}}
  epochs: [1, 2]
"""


class InThisProcess:
    """An engine without processes."""

    def events(self, jobs: Sequence[Job], work: Work) -> Iterator[Event]:
        for job in jobs:
            yield Event(job, "ended", outcome=work(job, lambda text: None))


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "choose_engine", lambda *_: InThisProcess())


def tune(folder: Path, content: dict[str, Any], trials: int) -> Path:
    """Search with other test images than training images, and return the output folder."""
    folder.mkdir()
    np.savez(folder / "f.npz", **content)
    (folder / "s.yaml").write_text(SWEEP.format(file=folder / "f.npz"))
    arguments = ["sweep", str(folder / "s.yaml"), "--output", str(folder / "runs")]
    assert main([*arguments, "--tune", str(trials)]) == 0
    return folder / "runs"


def test_settings_are_chosen_on_held_out_training_images_of_other_orders_and_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = arrays()
    output = tune(tmp_path / "one", content, 10)
    shown = capsys.readouterr().out
    results = load_results(output)
    assert len(results) == 10 and {result.content["strategy"] for result in results} == {"lda"}
    assert {result.content["scored_on"] for result in results} == {"validation images"}
    assert {result.seed for result in results} == {101}  # the sweep reports 0 and 100
    orders = {tuple(result.content["class_order"]) for result in results}
    assert len(orders) == 1 and orders != {tuple(range(7))}
    default = [r for r in results if r.content["options"]["shrinkage"] == 0.3]
    assert len(default) == 1  # tried too
    best = max(results, key=lambda result: np.mean(result.curves["accuracy"][1:]))
    tuned = yaml.safe_load((output / "tuned.yaml").read_text())
    assert tuned["list"] == [
        {
            "scenario": "features", "data_dir": str(tmp_path / "one/f.npz"), "tasks": 3,
            "strategy": "lda", "lda.shrinkage": best.content["options"]["shrinkage"],
        }
    ]  # fmt: skip
    assert "looked at: 14 training images of 3 tasks" in shown and "class order seed:12" in shown
    assert "(28 others)" in shown and "10 runs; no test image" in shown
    assert "best before task 2 ... 3, by the tasks before it: trial" in shown
    jobs = plan_jobs(read_sweep(output / "tuned.yaml"), output)
    assert len(jobs) == 4  # two seeds, two orders

    # Other test images, even absurd ones, change nothing.
    content["test_x"] = -content["test_x"][::-1]
    again = yaml.safe_load((tune(tmp_path / "two", content, 10) / "tuned.yaml").read_text())
    assert again["list"][0]["lda.shrinkage"] == tuned["list"][0]["lda.shrinkage"]


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("", "--tune needs a section tune"),
        ("tune: {lda.shrinkage: {low: 1, high: 0.1}}", "line 2: tune.lda.shrinkage: expected a"),
        ("tune: {lda.shrinkage: {low: 0, high: 1, log: true}}", "low must be above 0"),
        ("tune: {lda.shrinkage: 3}", "line 2: tune.lda.shrinkage: expected a list"),
        ("tune: {lda.shrink: [1, 2]}", "line 2: tune.lda.shrink: lda has no option 'shrink'"),
        ("tune: {coop.lr: [1, 2]}", "no run of the sweep has a setting coop.lr"),
        ("tune: {lrr: [1, 2]}", "line 2: tune.lrr: unknown setting"),
    ],
)
def test_a_bad_section_is_refused(
    tmp_path: Path, refused: Callable[..., str], section: str, line: str
) -> None:
    (tmp_path / "s.yaml").write_text(f"common: {{strategy: lda}}\n{section}\n")
    message = refused("sweep", tmp_path / "s.yaml", "--tune", "2", "--output", tmp_path / "runs")
    assert line in message
