"""What may resume a stopped run, and what must be refused."""

import json
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cl_clipfit.commands.train as train
from benchmarks.faults.job import artefacts
from cl_clipfit.bank.store import DeltaBank
from cl_clipfit.cli.app import main
from cl_clipfit.errors import UserError
from cl_clipfit.report import figures
from cl_clipfit.storage.manifest import adding
from cl_clipfit.storage.run_folder import RunFolder
from cl_clipfit.training.strategy import CLIPStrategy
from tests.support.tiny import PLUGIN, TINY

HOST = [*TINY, "--strategy", "clipfit", "--epochs", "2", "--quiet"]
QUICK = ["--set", "mergetune.merge_epochs=1", "mergetune.landscape=off"]
MERGES = {"mean": ["--method", "mean"], "mergetune": ["--method", "mergetune", *QUICK]}


def run(*arguments: str | Path) -> int:
    return main([str(word) for word in arguments])


def stop_at(
    patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, after: bool = False
) -> None:
    """Let a signal come at the nth call of something."""
    function, calls = getattr(owner, name), [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and not after:
            signal.raise_signal(signal.SIGINT)
        found = function(*args, **kwargs)
        if calls[0] == call and after:
            signal.raise_signal(signal.SIGINT)
        return found

    patch.setattr(owner, name, counted)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("hosts")
    assert run(*HOST, "--output", output) == 0
    return output


@pytest.fixture
def host(hosts: Path, tmp_path: Path) -> Path:
    output = tmp_path / "runs"
    shutil.copytree(hosts, output)
    (folder,) = output.glob("*-clipfit-s0-*")
    return folder


@pytest.fixture
def stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Return the folder of a run that was stopped in the first epoch of its second task."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, CLIPStrategy, "compute_loss", 5)
        assert run(*HOST, "--output", tmp_path / "runs") == 130
    capsys.readouterr()
    (folder,) = (tmp_path / "runs").glob("*-clipfit-s0-*")
    return folder


@pytest.mark.parametrize("method", MERGES)
@pytest.mark.parametrize("place", ["append", "save_result"])
def test_a_stopped_merge_says_how_it_goes_on(
    method: str, place: str, host: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(host.parent, whole)
    merge = [*MERGES[method], *PLUGIN]
    assert run("merge", whole / host.name, *merge) == 0
    with pytest.MonkeyPatch.context() as patch:
        owner = DeltaBank if place == "append" else RunFolder
        stop_at(patch, owner, place, 2 if place == "append" else 1, after=True)
        capsys.readouterr()
        assert run("merge", host, *merge) == 130
    assert "the same command resumes it" in capsys.readouterr().err
    assert run("merge", host, *merge) == 0
    assert artefacts(host.parent).keys() == artefacts(whole).keys()
    assert not list(host.parent.rglob("checkpoints"))
    for name in ("result.json", "bank/index.json"):
        (one,), (two,) = (list(o.glob(f"*+{method}*/{name}")) for o in (host.parent, whole))
        if name == "result.json":
            found, wanted = (json.loads(file.read_text()) for file in (one, two))
            assert found["metrics"] == wanted["metrics"]
        else:
            assert one.read_bytes() == two.read_bytes()


def test_a_merged_run_is_no_run_to_replay(host: Path, refused: Callable[..., str]) -> None:
    assert run("merge", host, *MERGES["mean"], *PLUGIN) == 0
    (merged,) = host.parent.glob("*+mean*")
    assert run("verify", merged) == 0
    assert "merged, not trained" in refused("verify", merged, "--replay", *PLUGIN)


def test_a_forced_run_is_neither_of_the_two(
    stopped: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    force = ["--resume", stopped, *PLUGIN, "--lr", "0.01", "--force-resume", "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, CLIPStrategy, "compute_loss", 2)
        assert run(*force) == 130
    advice = capsys.readouterr().err
    again = shlex.split(advice[advice.index("run.py") :].partition(" resumes it")[0])[1:]
    assert "--force-resume" in again
    assert run(*again, "--quiet") == 0
    line = refused(*HOST, "--output", stopped.parent)
    assert str(stopped) in line
    assert "--force-resume" in line
    assert run("verify", stopped) == 0
    assert run(*HOST, "--output", stopped.parent, "--fresh") == 0


def test_another_class_order_is_another_stream(stopped: Path, refused: Callable[..., str]) -> None:
    """Labels are numbered as classes arrive, and are the same in every order."""
    order = ["--class-order", "seed:3", "--force-resume", "--quiet"]
    assert "another stream" in refused("--resume", stopped, *PLUGIN, *order)
    assert run("--resume", stopped, *PLUGIN, "--quiet") == 0


def test_resume_and_output_are_two_places(
    stopped: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert "--output" in refused("--resume", stopped, *PLUGIN, "--output", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_folder_in_the_place_of_a_file_is_one_line(
    stopped: Path, refused: Callable[..., str]
) -> None:
    (stopped / "nan-batch.json" / "x").mkdir(parents=True)
    assert "nan-batch.json" in refused("--resume", stopped, *PLUGIN, "--quiet")


def test_a_stop_before_anything_was_written_advises_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for owner, name in ((RunFolder, "begin"), (train, "prepare"), (figures, "plot_comparison")):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, owner, name, 1)
            assert run(*HOST, "--output", tmp_path / "runs") == 130
        assert capsys.readouterr().err.splitlines()[-1] == (
            "stopped by SIGINT: the same command resumes it"
        )


def test_an_export_into_a_run_belongs_to_it(host: Path) -> None:
    assert run("bank", "export", host, host / "model.pt", *PLUGIN) == 0
    assert run("verify", host) == 0
    (host / "deeper").mkdir()
    assert run("bank", "export", host, host / "deeper" / "model.safetensors", *PLUGIN) == 0
    assert run("verify", host) == 0


def test_nothing_is_added_to_a_folder_that_is_gone(
    tmp_path: Path, host: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    with pytest.raises(UserError, match="has vanished"), adding(tmp_path / "gone"):
        pass
    assert not (tmp_path / "gone").exists()
    draw = figures.plot_run

    def vanish(*args: Any) -> None:
        draw(*args)
        shutil.rmtree(host)

    monkeypatch.setattr(figures, "plot_run", vanish)
    assert "has vanished" in refused(*HOST, "--output", host.parent, "--fresh")
    assert not (host / "result.json").exists()
