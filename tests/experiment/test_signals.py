"""Signals end a run in good order, `--resume` resumes it, and refuses what it must."""

import functools
import itertools
import json
import os
import runpy
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from benchmarks.faults.job import artefacts, wait
from benchmarks.faults.job import start as fork
from cl_clipfit.bank.store import DeltaBank
from cl_clipfit.cli.app import main
from cl_clipfit.report import figures
from cl_clipfit.storage.checkpoints import Checkpoints
from cl_clipfit.storage.run_folder import RunFolder
from cl_clipfit.training.journal import Journal
from cl_clipfit.training.strategy import CLIPStrategy
from tests.support.tiny import PLUGIN, TINY, TRAINED

EPOCHS = ["--epochs", "3", "--quiet"]
ROOT = Path(__file__).parents[2]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
PATIENCE = 120  # seconds for a process that has to import everything on a busy machine

# Waits at the call that the environment names, and touches a file when it is there.
WAITING = """
import os, time
from pathlib import Path
from torch import nn
from cl_clipfit import CLIPStrategy
CALLS = {}
def meet(where):
    CALLS[where] = CALLS.get(where, 0) + 1
    at, _, seconds = os.environ.get("WAIT_AT", "").partition("/")
    if at == f"{where}:{CALLS[where]}":
        Path(os.environ["MARK"]).touch()
        time.sleep(float(seconds))
class Waiting(CLIPStrategy):
    def trainable(self):
        return [m.weight for m in self.model.clip.visual.modules() if isinstance(m, nn.LayerNorm)]
    def compute_loss(self, logits, labels):
        meet("step")
        return super().compute_loss(logits, labels)
    def scores(self, images):
        meet("scores")
        return super().scores(images)
"""


def run(*arguments: str, output: Path | None = None) -> int:
    return main([*arguments, *([] if output is None else ["--output", str(output)])])


def folder_of(output: Path, name: str = "image-norms") -> Path:
    (folder,) = output.glob(f"*-{name}-s*")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what an unbroken run of the small job leaves."""
    output = tmp_path_factory.mktemp("whole")
    assert run(*TRAINED, *EPOCHS, output=output) == 0
    return output


def arm_at(
    patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, *numbers: int, after: bool = False
) -> list[int]:
    """Send signals to this process at the nth call of something; return its counter."""
    function, calls = getattr(owner, name), [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        hit = calls[0] == call
        if hit and not after:
            for number in numbers:
                signal.raise_signal(number)
        found = function(*args, **kwargs)
        if hit and after:
            for number in numbers:
                signal.raise_signal(number)
        return found

    patch.setattr(owner, name, counted)
    return calls


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    return functools.partial(arm_at, monkeypatch)


def advised(error: str) -> list[str]:
    """Return the command that the one line on stderr advises, without its `run.py`."""
    (line,) = error.splitlines()
    assert line.startswith("stopped by SIG")
    assert "run.py --resume " in line
    command, _, rest = line[line.index("run.py") :].partition(" resumes it")
    assert rest == ""
    return shlex.split(command)[1:]


PLACES: dict[str, tuple[Any, str, int]] = {
    "the first step": (CLIPStrategy, "compute_loss", 1),
    "the last step of an epoch": (CLIPStrategy, "optimizer_step", 2),
    "a step of task 2": (CLIPStrategy, "compute_loss", 9),
    "the first checkpoint": (Checkpoints, "save", 1),
    "the checkpoint of an epoch": (Checkpoints, "save", 3),
    "the checkpoint of task 2": (Checkpoints, "save", 5),
    "the first evaluation": (CLIPStrategy, "score_all", 1),
    "the evaluation of task 1": (CLIPStrategy, "score_all", 2),
    "the last evaluation": (CLIPStrategy, "score_all", 3),
    "the bank": (DeltaBank, "append", 2),
    "the figures": (figures, "plot_run", 1),
    "the result": (RunFolder, "save_result", 1),
}


@pytest.mark.parametrize(
    ("place", "number"),
    list(zip(PLACES.values(), itertools.cycle(CODES), strict=False)),
    ids=PLACES.keys(),
)
def test_a_stopped_run_goes_on_where_it_was(
    place: tuple[Any, str, int], number: int, whole: Path, tmp_path: Path, at: Any,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    after = place[0] is not RunFolder  # there it would be complete
    handlers = [signal.getsignal(n) for n in CODES]
    at(*place, number, after=after)
    assert run(*TRAINED, *EPOCHS, output=tmp_path) == CODES[signal.Signals(number)]
    assert [signal.getsignal(n) for n in CODES] == handlers
    monkeypatch.undo()
    again = advised(capsys.readouterr().err)
    assert again[:2] == ["--resume", str(folder_of(tmp_path))]
    assert run(*again, "--quiet") == 0
    assert artefacts(tmp_path) == artefacts(whole)
    assert not list(tmp_path.rglob("checkpoints"))
    assert run("verify", again[1], *PLUGIN) == 0


def test_a_step_under_way_is_finished(tmp_path: Path, at: Any) -> None:
    steps = at(CLIPStrategy, "optimizer_step", 0)
    at(CLIPStrategy, "compute_loss", 3, signal.SIGINT)
    assert run(*TRAINED, *EPOCHS, output=tmp_path) == 130
    assert steps[0] == 3


def test_a_second_signal_does_not_wait_for_the_step(tmp_path: Path, at: Any) -> None:
    steps = at(CLIPStrategy, "optimizer_step", 0)
    at(CLIPStrategy, "compute_loss", 3, signal.SIGINT, signal.SIGINT)
    assert run(*TRAINED, *EPOCHS, output=tmp_path) == 130
    assert steps[0] == 2


def test_a_signal_of_one_command_does_not_stop_the_next(
    whole: Path, tmp_path: Path, at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(CLIPStrategy, "compute_loss", 3, signal.SIGINT)
    assert run(*TRAINED, *EPOCHS, output=tmp_path / "a") == 130
    monkeypatch.undo()
    assert run(*TRAINED, *EPOCHS, output=tmp_path / "b") == 0
    assert artefacts(tmp_path / "b") == artefacts(whole)


def test_a_run_may_be_stopped_again_and_again(
    whole: Path, tmp_path: Path, at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = 0
    while True:
        at(CLIPStrategy, "compute_loss", 3, signal.SIGINT)  # the first step of a second epoch
        code = run(*TRAINED, *EPOCHS, output=tmp_path)
        monkeypatch.undo()
        if code == 0:
            break
        assert code == 130
        stops += 1
    assert stops >= 4
    assert artefacts(tmp_path) == artefacts(whole)


def test_the_same_command_goes_on_and_says_where(
    whole: Path, tmp_path: Path, at: Any, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    loud = [*TRAINED, *EPOCHS[:-1]]
    at(CLIPStrategy, "compute_loss", 9, signal.SIGINT)  # in the second epoch of task 2
    assert run(*loud, output=tmp_path) == 130
    monkeypatch.undo()
    capsys.readouterr()
    steps = at(CLIPStrategy, "optimizer_step", 0)
    assert run(*loud, output=tmp_path) == 0
    assert steps[0] == 3
    said = capsys.readouterr().err
    assert f"{folder_of(tmp_path).name}: resumed in task 2, after step 1 of epoch 2\n" in said
    assert "task 2/2" in said
    assert "images/s" not in said  # of some of the task's steps alone
    assert artefacts(tmp_path) == artefacts(whole)


def test_the_advice_does_not_forget_the_other_runs_of_a_command(
    tmp_path: Path, at: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--resume` resumes one run; the seeds after it would never be run."""
    seeds = [*TRAINED, "--quiet", "--seed", "0", "1"]
    at(CLIPStrategy, "compute_loss", 3, signal.SIGINT)  # of 4
    assert run(*seeds, output=tmp_path) == 130
    monkeypatch.undo()
    assert "same command" in capsys.readouterr().err
    assert run(*seeds, output=tmp_path) == 0
    assert len(list(tmp_path.glob("*/result.json"))) == 2


def test_fresh_begins_again(
    whole: Path, tmp_path: Path, at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(CLIPStrategy, "compute_loss", 9, signal.SIGINT)
    assert run(*TRAINED, *EPOCHS, output=tmp_path) == 130
    monkeypatch.undo()
    steps = at(CLIPStrategy, "optimizer_step", 0)
    assert run(*TRAINED, *EPOCHS, "--fresh", output=tmp_path) == 0
    assert steps[0] == 12
    assert artefacts(tmp_path) == artefacts(whole)


CROPS = ["--set", "image-norms.augmentation=crop-flip", "image-norms.optimizer=sgd"]
MIDST = {
    "crops and momentum": ["--epochs", "2", "--quiet", *CROPS],
    "online": ["--online", "12", "--quiet"],
}


@pytest.mark.parametrize("more", MIDST.values(), ids=MIDST.keys())
def test_a_run_goes_on_in_the_midst_of_an_epoch(
    more: list[str], tmp_path: Path, at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few steps at a time, each few in a process of their own: none is done twice."""
    job = [*TRAINED, *more, "--batch-size", "5"]
    steps = at(CLIPStrategy, "optimizer_step", 0)
    assert run(*job, output=tmp_path / "whole") == 0
    wanted, done = steps[0], 0
    monkeypatch.undo()
    while True:
        steps = at(CLIPStrategy, "optimizer_step", 0)
        at(CLIPStrategy, "compute_loss", 4, signal.SIGTERM)
        code = run(*job, output=tmp_path / "broken")
        monkeypatch.undo()
        done += steps[0]
        if code == 0:
            break
        assert (code, steps[0]) == (143, 4)
    assert done == wanted >= 12
    assert artefacts(tmp_path / "broken") == artefacts(tmp_path / "whole")


def test_batches_that_are_drawn_otherwise_are_not_taken_for_those_before(
    unfinished: Path, whole: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    batches = Journal.batches

    def others(self: Journal, loader: Any) -> Any:
        return batches(self, reversed(list(loader)))

    monkeypatch.setattr(Journal, "batches", others)
    before = sorted(unfinished.glob("checkpoints/*"))
    line = refused(capsys, "--resume", str(unfinished), *PLUGIN, "--quiet")
    monkeypatch.undo()
    assert sorted(unfinished.glob("checkpoints/*")) == before
    newest = [file for file in before if file.suffix == ".safetensors"][-1]
    assert str(newest) in line
    newest.unlink()  # as it says
    assert run("--resume", str(unfinished), *PLUGIN, "--quiet") == 0
    assert artefacts(unfinished) == artefacts(folder_of(whole))


def test_other_batches_are_what_a_forced_run_asks_for(
    unfinished: Path, monkeypatch: pytest.MonkeyPatch, at: Any
) -> None:
    steps = at(CLIPStrategy, "optimizer_step", 0)
    more = ["--batch-size", "7", "--force-resume", "--quiet"]
    assert run("--resume", str(unfinished), *PLUGIN, *more) == 0
    assert steps[0] == (4 - 1) + 4 + 3 * 4  # of 24 images in a task


# ---- --resume ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what a run leaves that was stopped in the second epoch of task 1."""
    output = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        arm_at(patch, CLIPStrategy, "compute_loss", 3, signal.SIGINT)
        assert run(*TRAINED, *EPOCHS, output=output) == 130
    return output


@pytest.fixture
def unfinished(stopped: Path, tmp_path: Path) -> Path:
    """Return the folder of that run, in a copy of its own."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    return folder_of(tmp_path)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(*arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_resume_needs_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.mkdir()
    for place in (missing, empty):
        line = refused(capsys, "--resume", str(place), *PLUGIN)
        assert str(place) in line
        assert "config.yaml" in line
    assert not missing.exists()
    assert not list(empty.iterdir())


def test_resume_and_fresh_are_two_things(
    unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(unfinished)
    assert "--fresh" in refused(capsys, "--resume", str(unfinished), *PLUGIN, "--fresh")
    assert content(unfinished) == before


def test_force_resume_needs_resume(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--resume FOLDER" in refused(capsys, "--force-resume")


def test_a_finished_run_is_shown_again(
    whole: Path, tmp_path: Path, at: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before, steps = content(folder_of(tmp_path)), at(CLIPStrategy, "optimizer_step", 0)
    assert run("--resume", str(folder_of(tmp_path)), *PLUGIN) == 0
    printed = capsys.readouterr()
    assert steps[0] == 0
    assert "complete" in printed.err
    assert "image-norms" in printed.out
    assert content(folder_of(tmp_path)) == before


def test_other_settings_are_listed_and_refused(
    unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(unfinished)
    line = refused(capsys, "--resume", str(unfinished), *PLUGIN, "--lr", "0.5", "--batch-size", "4")
    for text in ("lr: 0.001 -> 0.5", "batch_size: 16 -> 4", "--force-resume"):
        assert text in line
    assert "seed" not in line
    line = refused(capsys, "--resume", str(unfinished), *PLUGIN, "--set", "image-norms.pull=0.5")
    assert "image-norms.pull=0.01" in line
    assert "image-norms.pull=0.5" in line
    assert content(unfinished) == before


@pytest.mark.parametrize("more", [["--recompute"], ["--quiet"], ["--micro-batch", "4"]], ids=str)
def test_settings_that_change_no_number_are_accepted(
    more: list[str], unfinished: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--resume", str(unfinished), *PLUGIN, *more) == 0
    ours = json.loads((unfinished / "result.json").read_text())
    theirs = json.loads((folder_of(whole) / "result.json").read_text())
    assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=1e-3)
    if "4" in more:  # as it was asked for: a run that runs out of memory goes on like this
        assert ours["micro_batch"] == 4


def test_a_moved_folder_goes_on(unfinished: Path, whole: Path, tmp_path: Path) -> None:
    """Only `.../runs` moved: the folder's own name says what its settings were."""
    place = tmp_path / "elsewhere" / unfinished.name
    place.parent.mkdir()
    unfinished.rename(place)
    assert run("--resume", str(place), *PLUGIN, "--quiet") == 0
    assert artefacts(place) == artefacts(folder_of(whole))


def test_a_renamed_folder_is_not_said_to_have_other_data(
    unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = unfinished.rename(unfinished.with_name("my-best-run"))
    line = refused(capsys, "--resume", str(place), *PLUGIN)
    assert unfinished.name in line  # what it has to be called
    assert place.is_dir()


def test_force_resume_goes_on_with_the_new_settings(
    unfinished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = CLIPStrategy.optimizer_step

    def noted(self: CLIPStrategy) -> None:
        rates.append(self.optimizer.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(CLIPStrategy, "optimizer_step", noted)
    more = ["--lr", "0.5", "--force-resume", "--quiet"]
    assert run("--resume", str(unfinished), *PLUGIN, *more) == 0
    assert len(rates) == 3 + 6  # what was finished is not repeated
    assert max(rates[:3]) > 0.01  # of what is left of task 1, which had another rate
    config = yaml.safe_load((unfinished / "config.yaml").read_text())
    assert config["lr"] == 0.5
    assert json.loads((unfinished / "result.json").read_text())["warnings"]  # not a run of one rate
    assert run("verify", str(unfinished), *PLUGIN) == 0


@pytest.mark.parametrize("more", [["--seed", "0", "1"], ["--strategy", "image-norms", "full"]],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("force", [[], ["--force-resume"]], ids=["", "force"])
def test_a_folder_takes_one_run(
    more: list[str], force: list[str], unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(unfinished)
    refused(capsys, "--resume", str(unfinished), *PLUGIN, *more, *force, "--quiet")
    assert content(unfinished) == before


@pytest.mark.parametrize(
    "more", [["--strategy", "full"], ["--tasks", "3"], ["--scenario", "split-digits"]], ids=str
)
def test_what_does_not_fit_a_state_is_refused_in_one_line(
    more: list[str], unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(unfinished)
    line = refused(capsys, "--resume", str(unfinished), *PLUGIN, *more, "--force-resume", "--quiet")
    assert "KeyError" not in line
    assert content(unfinished) == before


# ---- processes -----------------------------------------------------------------------------------


class Process:
    """A command in a process group of its own, as a terminal starts it.

    It is forked with all modules imported, which is most of what a new interpreter does; that is
    started where `python` has its arguments.
    """

    def __init__(
        self, tmp_path: Path, arguments: list[str], python: tuple[str, ...] = (), **variables: str
    ) -> None:
        self.mark, self.log = tmp_path / "mark", tmp_path / "printed"
        self.log.unlink(missing_ok=True)
        self.code: int | None = None

        def work() -> int:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # even if started with `&`
            os.environ.update(OMP_NUM_THREADS="1", MARK=str(self.mark), **variables)
            if python:
                os.execv(sys.executable, [sys.executable, *python, *arguments])
            sys.argv = ["run.py", *arguments]
            try:
                runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
            except SystemExit as end:
                return int(end.code or 0)
            return 0

        self.pid = fork(work, self.log)

    def wait_for_mark(self) -> None:
        end = time.monotonic() + PATIENCE
        while not self.mark.exists():
            if self.is_over() or time.monotonic() > end:
                pytest.fail(f"not there: {self.log.read_text()}")
            time.sleep(0.005)

    def is_over(self) -> bool:
        if self.code is None and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG):
            self.code = wait(self.pid)
        return self.code is not None

    def send(self, number: int, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.pid, number)

    def end(self) -> tuple[int, str]:
        """Return exit code and what it printed."""
        if self.code is None:
            self.code = wait(self.pid)
        return self.code, self.log.read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def begin(arguments: list[str], **options: Any) -> Process:
        started.append(Process(tmp_path, arguments, **options))
        return started[-1]

    yield begin
    for one in started:
        if not one.is_over():
            os.killpg(one.pid, signal.SIGKILL)
            one.end()


@pytest.fixture
def job(tmp_path: Path) -> list[str]:
    plugin = tmp_path / "waiting.py"
    plugin.write_text(f"{WAITING}# {tmp_path}")  # not the module of another test, that counted
    return [*TINY, str(plugin), *EPOCHS, "--strategy", "waiting"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_ends_by_a_signal_and_another_one_goes_on(
    number: signal.Signals, job: list[str], start: Any, tmp_path: Path
) -> None:
    command = [*job, "--output", str(tmp_path / "broken")]
    process = start(command, WAIT_AT="step:9/0.3" if number == signal.SIGINT else "scores:2/5")
    process.wait_for_mark()
    process.send(number)
    code, error = process.end()
    assert code == CODES[number]
    again = advised(error)
    assert main([*again, "--quiet"]) == 0
    assert run(*job, output=tmp_path / "whole") == 0
    assert artefacts(tmp_path / "broken") == artefacts(tmp_path / "whole")


def test_a_second_ctrl_c_ends_a_long_step(job: list[str], start: Any, tmp_path: Path) -> None:
    command = [*job, "--output", str(tmp_path / "broken")]
    process = start(command, WAIT_AT="step:3/300")
    process.wait_for_mark()
    process.send(signal.SIGINT)
    time.sleep(0.5)
    assert not process.is_over()  # it waits for the step
    process.send(signal.SIGINT)
    before = time.monotonic()
    code, error = process.end()
    assert code == 130
    assert time.monotonic() - before < 30
    assert advised(error)[:2] == ["--resume", str(folder_of(tmp_path / "broken", "waiting"))]


def draw_images(root: Path) -> Path:
    for label, name in enumerate(("ash", "beech", "cedar", "date")):
        (root / name).mkdir(parents=True)
        for number in range(10):
            colour = (60 * label, 20 * number, 90)
            Image.new("RGB", (20, 24), colour).save(root / name / f"{number}.png")
    return root


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_worker_processes_do_not_turn_a_signal_into_an_error(
    number: signal.Signals, job: list[str], start: Any, tmp_path: Path
) -> None:
    """Ctrl-C goes to all processes of the terminal's group, those that read images too.

    So does what a cluster's manager sends before it takes the machine away.
    """
    plugin = tmp_path / "waiting.py"
    images = draw_images(tmp_path / "images")
    command = [
        "--plugin", str(plugin), "--strategy", "waiting", *EPOCHS,
        "--scenario", "folder", "--data-dir", str(images), "--tasks", "2", "--model", "mini",
        "--batch-size", "4", "--probe", "--output", str(tmp_path / "broken"),
    ]  # fmt: skip
    python = ("run.py",) if number == signal.SIGINT else ()
    process = start(command, python=python, WAIT_AT="step:6/0.3", CL_CLIPFIT_IMAGE_GIB="0")
    process.wait_for_mark()
    process.send(number, group=True)
    code, error = process.end()
    assert code == CODES[number], error
    state = Checkpoints(folder_of(tmp_path / "broken", "waiting"), pytest.fail).load()
    assert state is not None
    assert state["at"]["steps"] > 0  # the step under way had its batch
    assert advised(error)[:2] == ["--resume", str(folder_of(tmp_path / "broken", "waiting"))]


@pytest.mark.parametrize(
    "module", ["cyclopts", "cl_clipfit.runtime.signals", "torch", "avalanche.core"]
)
def test_a_signal_at_start_up_leaves_no_traceback(module: str, start: Any, tmp_path: Path) -> None:
    code = f"""
import importlib.abc, os, runpy, signal, sys
class Finder(importlib.abc.MetaPathFinder):
    sent = False
    def find_spec(self, name, path=None, target=None):
        if name == {module!r} and not Finder.sent:
            Finder.sent = True
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["run.py", "--output", {str(tmp_path / "runs")!r}, "--quiet"]
sys.path.insert(0, {str(ROOT)!r})
runpy.run_path({str(ROOT / "run.py")!r}, run_name="__main__")
"""
    code_, error = start([code], python=("-c",)).end()
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1
    assert code_ == 130
    assert not (tmp_path / "runs").exists()
