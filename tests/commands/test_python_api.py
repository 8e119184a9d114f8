"""A run from Python in one call: `run`, `open_run`, `load_scenario`."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cl_clipfit import RunConfig, UserError, load_scenario, open_run, run
from cl_clipfit.cli.app import main
from cl_clipfit.report import figures
from tests.support.tiny import PLUGIN, TINY

CONFIG: dict[str, Any] = {
    "scenario": "tiny-stream", "tasks": 3, "plugin": PLUGIN[1:], "device": "cpu",
}  # fmt: skip


def test_a_run_returns_its_results_and_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig(**CONFIG, strategy=["zero-shot", "clipfit"], seed=[0, 1], output=tmp_path)
    results = run(config)
    assert [(r.label, r.seed) for r in results] == [
        ("zero-shot", 0), ("zero-shot", 1), ("clipfit", 0), ("clipfit", 1),
    ]  # fmt: skip
    assert capfd.readouterr() == ("", "")
    last = results[-1]
    assert last.path.parent == tmp_path
    assert len(last.accuracy_matrix) == 4
    assert last.metrics["average_accuracy"] == last.content["metrics"]["average_accuracy"]
    assert len(last.curves["accuracy"]) == 4
    assert (tmp_path / "tiny-stream-comparison.csv").is_file()
    again = run(config)  # complete runs are not repeated
    assert [r.content["timings"] for r in again] == [r.content["timings"] for r in results]

    opened = open_run(last.path)
    assert len(opened.bank) == 3
    assert opened.result["digest"] == last.content["digest"]
    assert capfd.readouterr() == ("", "")


def test_a_scenario_is_a_benchmark_with_names() -> None:
    scenario = load_scenario("split-digits", tasks=5)
    assert scenario.class_names[:2] == ["zero", "one"]
    assert len(scenario.benchmark.train_stream) == 5
    experience = scenario.benchmark.train_stream[0]
    assert sorted(experience.classes_in_this_experience) == [0, 1]
    image, label, *_ = experience.dataset[0]
    assert image.dtype == torch.uint8
    assert label in (0, 1)


def test_shots_differ_by_seed() -> None:
    one, same, other = (load_scenario("split-digits", shots=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.train.images[:], same.train.images[:])
    assert not torch.equal(one.train.images[:], other.train.images[:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_scenario("split-digit"), "Did you mean 'split-digits'"),
        (lambda: load_scenario("split-digits", tasks=0), "scenario split-digits: tasks"),
        (lambda: load_scenario("split-digits", shot=2), "scenario split-digits: unknown setting"),
        (lambda: open_run("absent"), "not a run folder"),
        (lambda: run(RunConfig(strategy=["clipfitt"])), "Did you mean 'clipfit'"),
    ],
)
def test_what_is_wrong_is_one_sentence(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


def test_figures_and_tables_that_fail_end_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("cannot draw")

    for name in ("plot_run", "plot_changes", "plot_comparison"):
        monkeypatch.setattr(figures, name, fail)
    (tmp_path / "tiny-stream-comparison.csv").mkdir()
    assert main([*TINY, "--strategy", "zero-shot", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "run folder" in shown.out
    for name in ("curves", "what_moved", "tiny-stream-comparison"):
        assert f"warning: the figure {name} is missing: ValueError: cannot draw" in shown.err
    assert "warning: cannot write" in shown.err
