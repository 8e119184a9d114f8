"""Sweep files: which runs they name, and what is wrong with bad ones."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cl_clipfit.errors import UserError
from cl_clipfit.sweep.engines import Share, share_out
from cl_clipfit.sweep.file import read_sweep
from cl_clipfit.sweep.planning import Index, plan_jobs

GOOD = """
common: {tasks: 2, epochs: 1, template: a photo of {}.}
grid:
  scenario: [split-digits]
  strategy: [clipfit, "mergetune:host=coop", lda]
  seed: [0, 1]
  clipfit.lr: [1e-3, 2e-3]
  coop.context_tokens: [2]
list:
  - {}
  - {epochs: 2, strategy: lda}
"""


def test_settings_go_to_the_runs_that_have_them_and_equal_runs_come_once(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(GOOD.replace("a photo of {}.", "'a photo of {}.'"))
    jobs = plan_jobs(read_sweep(file), tmp_path)
    labels = [job.label for job in jobs if job.settings["seed"] == [0]]
    # lda is not trained: two epochs make the same run, and it has no learning rate.
    assert labels == [
        "clipfit:epochs=1,lr=1e-3", "clipfit:epochs=1,lr=2e-3",
        "mergetune:host=coop,epochs=1", "lda",
    ]  # fmt: skip
    assert len(jobs) == 2 * len(labels) == len({job.key for job in jobs})
    by_label = {job.label: job.settings["set"] for job in jobs if "set" in job.settings}
    assert by_label["mergetune:host=coop,epochs=1"] == ["coop.context_tokens=2"]
    assert by_label["clipfit:epochs=1,lr=1e-3"] == ["clipfit.lr=1e-3"]
    assert {job.settings["template"][0] for job in jobs} == {"a photo of {}."}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("grid: {strategy: [lda], seed: [0, -1]}", "line 1: grid.seed.1: input should be greater"),
        ("grid:\n  strategy: [lda]\n  epoch: [1]", "line 3: grid.epoch: unknown setting. Did you"),
        ("grid:\n  strategy: lda", "line 2: grid.strategy: expected a list of values"),
        ("common: {strategy: lda, output: x}", "common.output: not a setting of a run"),
        ("common: {strategy: [lda, full]}", "common.strategy: a run has one: put the list"),
        ("common: {strategy: lda}\ngrids: {}", "line 2: grids: not a section"),
        ("common: {strategy: lda}\ncommon: {}", "line 2: not valid YAML: 'common' is given twice"),
        ("common: [1", "line 1: not valid YAML"),
        ("common: {tasks: 2}", "no strategy"),
        ("[1, 2]", "expected the sections"),
        ("list: {strategy: lda}", "line 1: list: expected a list of runs"),
        ("common: {strategy: ldda}", "ldda"),
        ("common: {strategy: lda}\ngrid:\n  lda.shrink: [1]", "line 3: grid.lda.shrink: lda has"),
        ("common: {strategy: lda}\ngrid:\n  lda.shrinkage: [7]", "line 3: grid.lda.shrinkage: inp"),
        ("common: {strategy: lda}\ngrid:\n  coop.n_ctx: [1]", "grid.coop.n_ctx: no run of the"),
        ("common: {strategy: lda, device: 'cuda:1'}", "common.device: the engine gives"),
        ("common: {strategy: lda, plugin: x.py}", "x.py"),
        ("grid: {strategy: [lda], seed: [" + "1," * 10_001 + "1]}", "10,000 at most"),
    ],
)
def test_a_bad_file_is_one_line_with_the_key_and_its_place(
    tmp_path: Path, refused: Callable[..., str], text: str, line: str
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    message = refused("sweep", file, "--output", tmp_path / "runs")
    assert str(file) in message and line in message
    assert not (tmp_path / "runs").exists()


def test_a_missing_file_and_impossible_shares_are_refused(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert "no such file" in refused("sweep", tmp_path / "none.yaml")
    (tmp_path / "s.yaml").write_text("common: {strategy: lda}")
    assert "--gpus 1.5" in refused("sweep", tmp_path / "s.yaml", "--gpus", "1.5")
    assert "--workers 0" in refused("sweep", tmp_path / "s.yaml", "--workers", "0")
    with pytest.raises(UserError, match="--gpus 2: this machine has 1"):
        share_out(Share(gpus=2), 4, ["0"], on_gpu=True)


def test_a_machine_is_shared_out() -> None:
    slots = share_out(Share(gpus=2, threads=3), 9, ["4", "5", "6", "7", "8"], on_gpu=True)
    assert [(slot.gpus, slot.threads) for slot in slots] == [("4,5", 3), ("6,7", 3)]
    assert [slot.gpus for slot in share_out(Share(workers=2), 9, ["4"], on_gpu=False)] == ["", ""]
    assert len(share_out(Share(), 1, ["0", "1"], on_gpu=True)) == 1


def test_the_index_survives_a_line_that_was_cut(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("common: {strategy: lda}\ngrid: {seed: [0, 1]}")
    first, second = plan_jobs(read_sweep(file), tmp_path)
    Index(tmp_path).add(first, "a")
    with Index(tmp_path).file.open("a") as text:
        text.write('{"key": "' + second.key)
    assert Index(tmp_path).folder(first) == tmp_path / "a"
    assert Index(tmp_path).folder(second) is None


def test_runs_are_done_again_if_a_file_that_the_sweep_names_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts, image = tmp_path / "prompts.csv", tmp_path / "more/class/a.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"")
    prompts.write_text("zero,a nought\n")
    file = tmp_path / "sweep.yaml"
    file.write_text("common: {strategy: lda, prompts: prompts.csv, then: more}")
    (before,) = plan_jobs(read_sweep(file), tmp_path)
    # A worker may have another working folder.
    assert before.settings["prompts"] == [str(prompts)]
    assert before.settings["then"] == [str(tmp_path / "more")]
    keys = {before.key}
    for changed in (prompts, image):
        changed.write_bytes(b"one,a stroke\n" * 2)
        keys.add(plan_jobs(read_sweep(file), tmp_path)[0].key)
    assert len(keys) == 3
