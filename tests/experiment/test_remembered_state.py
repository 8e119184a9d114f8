"""The state that plug-ins keep, what is recorded of them, and what a resumed run says of both."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.job import artefacts
from cl_clipfit.bank.store import DeltaBank
from cl_clipfit.cli.app import main
from cl_clipfit.storage.checkpoints import Checkpoints
from cl_clipfit.storage.files import sha256
from cl_clipfit.storage.lock import LOCK, hold
from cl_clipfit.storage.manifest import check_manifest
from cl_clipfit.training.strategy import CLIPStrategy
from tests.support.kills import stop_in_step
from tests.support.tiny import PLUGIN, TINY

STRATEGY = """
from collections import defaultdict, deque
import random, torch
from avalanche.training.plugins import ReplayPlugin, SupervisedPlugin
from torch import nn
from cl_clipfit import CLIPStrategy
class Counting(SupervisedPlugin):
    pass
class Remembering(CLIPStrategy):
    def __init__(self, **kwargs):
        self.calls = []
        {before}
        super().__init__(**kwargs)
        self.recent = deque(maxlen=2)
        {after}
    def trainable(self):
        return [m.weight for m in self.model.clip.visual.modules() if isinstance(m, nn.LayerNorm)]
    def training_logits(self, images):
        images.clamp_(min=60)
        return super().training_logits(images)
    def compute_loss(self, logits, labels):
        self.calls.append(self.clock.train_iterations)
        self.recent.append(float(len(self.calls)))
        self.model.count += 1
        scale = 1 + sum(self.recent) / 50 + len(self.calls) / 70 + float(self.model.count) / 90
        return super().compute_loss(logits, labels) * scale * (1 + self.calls[-1] / 30)
"""
BUFFER = "self.model.register_buffer('count', torch.zeros(()))"
LOST = {
    "a defaultdict": ("", "self.seen_at = defaultdict(int)", "seen_at"),
    "a generator of Python": ("self.dice = random.Random(5)", "", "dice"),
    "other keys": ("", "self.pairs = {(0, 1): 0}", "pairs"),
    "a plug-in of Avalanche": ("", "self.plugins.append(Counting())", "Counting"),
}
JOB = [*TINY, "--epochs", "2", "--batch-size", "5", "--quiet", "--strategy"]


def run(*arguments: str | Path) -> int:
    return main([str(word) for word in arguments])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what a run leaves that was stopped in the midst of task 1's second epoch."""
    output = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        stop_in_step(patch, 8)
        assert run(*JOB, "image-norms", "--output", output) == 143
    return output


@pytest.fixture
def unfinished(stopped: Path, tmp_path: Path) -> Path:
    """Return the folder of that run, in a copy of its own."""
    shutil.copytree(stopped, tmp_path / "runs")
    (folder,) = (tmp_path / "runs").glob("*-s0-*")
    return folder


def strategy_file(folder: Path, before: str = "", after: str = "") -> Path:
    file = folder / "remembering.py"
    own = f"{BUFFER}; {after}" if after else BUFFER
    file.write_text(STRATEGY.replace("{before}", before).replace("{after}", own))
    return file


def result(output: Path) -> dict[str, Any]:
    (file,) = output.glob("*/result.json")
    return json.loads(file.read_text())


def test_what_a_method_remembers_is_kept(tmp_path: Path, stop_at: Any) -> None:
    """Bounded queues, what was set before the base class, buffers, counts, changed images."""
    job = [*JOB, "remembering", "--plugin", *PLUGIN[1:], strategy_file(tmp_path)]
    assert run(*job, "--output", tmp_path / "whole") == 0
    stops = 0
    stop_at(6)
    while (code := run(*job, "--output", tmp_path / "broken")) == 143:
        stops += 1
        stop_at(6)
    assert (code, stops) == (0, 3)  # of 20 steps
    assert artefacts(tmp_path / "broken") == artefacts(tmp_path / "whole")
    assert result(tmp_path / "broken")["warnings"] == []


@pytest.mark.parametrize(("before", "after", "name"), LOST.values(), ids=LOST.keys())
def test_what_no_checkpoint_holds_is_told(
    before: str, after: str, name: str, tmp_path: Path, stop_at: Any
) -> None:
    job = [*JOB, "remembering", "--plugin", *PLUGIN[1:], strategy_file(tmp_path, before, after)]
    stop_at(3)
    assert run(*job, "--output", tmp_path / "runs") == 143
    stop_at(0)
    assert run(*job, "--output", tmp_path / "runs") == 0
    (warning,) = result(tmp_path / "runs")["warnings"]
    assert f"without {name}, which checkpoints cannot hold" in warning


def test_all_code_that_ran_is_recorded(tmp_path: Path) -> None:
    assert run(*JOB, "zero-shot", "--output", tmp_path) == 0
    known = {one["file"]: one["sha256"] for one in result(tmp_path)["code"]}
    for file in PLUGIN[1:]:  # the strategy among them is not used
        assert known[Path(file).name] == sha256(Path(file).read_bytes())


# ---- what can be resumed with what ---------------------------------------------------------------


def test_fewer_epochs_than_were_begun_take_nothing_from_the_next_task(
    unfinished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [0]
    step = CLIPStrategy.optimizer_step

    def counted(self: CLIPStrategy) -> None:
        steps[0] += 1
        step(self)

    monkeypatch.setattr(CLIPStrategy, "optimizer_step", counted)
    force = ["--epochs", "1", "--force-resume", "--quiet"]
    assert run("--resume", unfinished, *PLUGIN, *force) == 0
    assert steps[0] == 5  # of task 2


def test_another_optimiser_begins_without_the_state_of_the_one_before(unfinished: Path) -> None:
    force = ["--set", "image-norms.optimizer=sgd", "--force-resume", "--quiet"]
    assert run("--resume", unfinished, *PLUGIN, *force) == 0


def test_a_forced_run_that_was_stopped_is_not_taken_for_the_original(
    unfinished: Path, stop_at: Any, refused: Callable[..., str]
) -> None:
    stop_at(3)
    force = ["--resume", unfinished, *PLUGIN, "--lr", "0.5", "--force-resume", "--quiet"]
    assert run(*force) == 143
    stop_at(0)
    original = [*JOB, "image-norms", "--output", unfinished.parent]
    before = (unfinished / "config.yaml").read_bytes()
    assert "--force-resume" in refused(*original)
    assert (unfinished / "config.yaml").read_bytes() == before
    assert run(*force) == 0


def test_a_setting_that_changes_the_last_bits_is_told(unfinished: Path) -> None:
    assert run("--resume", unfinished, *PLUGIN, "--micro-batch", "3", "--quiet") == 0
    (warning,) = result(unfinished.parent)["warnings"]
    assert "micro_batch: auto -> 3" in warning


def test_advice_does_not_begin_finished_runs_again(
    tmp_path: Path, stop_at: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at(23)  # 20 steps a run
    seeds = ["--seed", "0", "1", "--fresh", "--output", tmp_path]
    assert run(*JOB, "image-norms", *seeds) == 143
    assert "the same command without --fresh resumes all runs" in capsys.readouterr().err


def test_weights_that_may_be_ruined_are_named(tmp_path: Path, refused: Callable[..., str]) -> None:
    """The first step of an epoch gives no number: the state before it has just been saved."""
    job = [*TINY, "--strategy", "image-norms", "--epochs", "3", "--batch-size", "64", "--quiet"]
    line = refused(*job, "--lr", "1e30", "--output", tmp_path)
    (folder,) = tmp_path.glob("*-s0-*")
    before, newest = sorted((folder / "checkpoints").glob("*.safetensors"))
    assert f"no step was made from {newest}: if its weights are to blame, remove it" in line
    newest.unlink()
    again = ["--resume", folder, *PLUGIN, "--lr", "1e-3", "--force-resume", "--quiet"]
    assert run(*again) == 0
    assert not before.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(tasks=-1), lambda state: state.update(seconds=float("nan")),
        lambda state: state.update(digest=None), lambda state: state.update(at={"x": 1}),
        lambda state: state["at"].update(loop="x"), lambda state: state["at"].update(epoch=True),
        lambda state: state["at"].update(steps=-1), lambda state: state["at"].pop("steps"),
        lambda state: state["at"].update(batches=None),
        lambda state: state["at"].update(steps=99),  # more than there are
    ],
    ids=range(10),
)  # fmt: skip
def test_a_state_that_no_run_saves_is_refused(
    change: Any, unfinished: Path, refused: Callable[..., str]
) -> None:
    files = Checkpoints(unfinished, pytest.fail)
    state = files.load()
    assert state is not None
    change(state)
    files.save(state)
    bank = (unfinished / "bank" / "index.json").read_bytes()
    assert "checkpoints" in refused("--resume", unfinished, *PLUGIN, "--quiet")
    assert (unfinished / "bank" / "index.json").read_bytes() == bank


# ---- folders of others ---------------------------------------------------------------------------


def test_a_run_folder_that_is_a_link_is_left_alone(
    unfinished: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    place = tmp_path / "precious"
    unfinished.rename(place)
    (place / ".config.json").write_text("mine")
    unfinished.symlink_to(place)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    line = refused(*JOB, "image-norms", "--output", unfinished.parent)
    assert f"{unfinished} is a symbolic link" in line
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_only_what_a_killed_write_leaves_is_swept(unfinished: Path) -> None:
    kept = (
        ".my.notes",
        ".config.json",
        "deep/.result.json.abcdefgh",
        "..lock.0123456789abcdef.a1b2c3_d",
    )
    for name in (*kept, ".result.json.a1b2c3_d"):
        (unfinished / name).parent.mkdir(exist_ok=True)
        (unfinished / name).write_text("half")
    assert run("--resume", unfinished, *PLUGIN, "--quiet") == 0
    assert all((unfinished / name).exists() for name in kept)
    assert not (unfinished / ".result.json.a1b2c3_d").exists()


def test_a_folder_that_another_process_has_made_again_is_not_written(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = Checkpoints.save, [0]

    def replaced(self: Checkpoints, state: dict[str, Any]) -> None:
        save(self, state)
        calls[0] += 1
        if calls[0] == 3:
            shutil.rmtree(self.folder.parent)
            self.folder.parent.mkdir()
            (self.folder.parent / LOCK).write_text("of another one")

    monkeypatch.setattr(Checkpoints, "save", replaced)
    assert "has vanished" in refused(*JOB, "image-norms", "--output", tmp_path)
    assert calls[0] == 3
    (folder,) = tmp_path.glob("*-s0-*")
    assert [path.name for path in folder.rglob("*")] == [LOCK]


def test_a_bank_that_lost_a_task_completes_no_run(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    append = DeltaBank.append

    def lossy(self: DeltaBank, *args: Any) -> None:
        append(self, *args)
        if len(self) == 2:
            (self.folder / "task-001.safetensors").unlink()

    monkeypatch.setattr(DeltaBank, "append", lossy)
    assert "task-001" in refused(*JOB, "image-norms", "--output", tmp_path)
    assert not list(tmp_path.glob("*/result.json"))


def test_a_lock_that_is_a_hard_link_is_not_written(
    unfinished: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "precious").write_text("kept")
    (unfinished / LOCK).hardlink_to(tmp_path / "precious")
    assert "hard link" in refused("--resume", unfinished, *PLUGIN, "--quiet")
    assert (tmp_path / "precious").read_text() == "kept"
    (unfinished / LOCK).unlink()
    with hold(unfinished):
        assert (unfinished / LOCK).exists()


def test_a_run_that_went_on_has_a_whole_manifest(unfinished: Path) -> None:
    assert run("--resume", unfinished, *PLUGIN, "--quiet") == 0
    assert check_manifest(unfinished) == []
