"""Untrusted run folders: whatever lies in them, a command ends with one line, and soon."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from cl_clipfit.bank.index import INDEX
from cl_clipfit.cli import app as command_line
from cl_clipfit.cli.app import main
from cl_clipfit.runtime.signals import Stopped
from cl_clipfit.storage.checkpoints import SCHEMA, Checkpoints, Part
from cl_clipfit.storage.files import seal, sha256, unseal
from cl_clipfit.storage.manifest import CHECKPOINTS
from tests.support.tiny import PLUGIN, TINY

COMMAND = [*TINY, "--strategy", "clipfit", "--quiet"]
LONGEST = 20  # seconds of a command, on a busy machine


class Killed(BaseException):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished")
    assert main([*COMMAND, "--output", str(output)]) == 0
    (folder,) = output.glob("*-clipfit-s0-*")
    return folder


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was killed in its second task."""
    output, write, left = tmp_path_factory.mktemp("unfinished"), Checkpoints.save, [3]

    def save_some(self: Checkpoints, state: dict[str, Any]) -> None:
        write(self, state)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_some)
        with pytest.raises(Killed):
            main([*COMMAND, "--output", str(output)])
    (folder,) = output.glob("*-clipfit-s0-*")
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "runs" / finished.name))


@pytest.fixture
def broken(unfinished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unfinished, tmp_path / "runs" / unfinished.name))


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    def late(number: int, frame: Any) -> None:
        raise TimeoutError(f"not done after {LONGEST} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LONGEST)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function: run a command that must end with a line; return its last one."""

    def attempt(*command: str | Path) -> str:
        capsys.readouterr()
        words = [str(word) for word in command]
        assert main(words if words[0] == "verify" else [*words, *PLUGIN]) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        *_, last = error.splitlines()
        assert last.startswith("error: ")
        return last

    return attempt


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def victim(tmp_path: Path) -> Path:
    """Return a folder of somebody else, with files of the names that runs have."""
    place = tmp_path / "victim"
    place.mkdir()
    for name in ("index.json", "task-001.safetensors", "model.safetensors"):
        (place / name).write_bytes(b"precious")
    return place


@pytest.mark.parametrize("name", ["bank", CHECKPOINTS])
@pytest.mark.parametrize("how", ["resume", "fresh"])
def test_nothing_is_written_or_removed_through_a_link(
    name: str, how: str, broken: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    place = victim(tmp_path)
    before = content(place)
    shutil.rmtree(broken / name)
    (broken / name).symlink_to(place)
    where = ["--config", broken / "config.yaml", "--output", broken.parent, "--fresh"]
    line = refused(*(["--resume", broken] if how == "resume" else where))
    assert f"{name} is a symbolic link" in line
    assert content(place) == before


@pytest.mark.parametrize(
    "name", ["MANIFEST.sha256", "config.yaml", "accuracy_matrix.csv", "result.json",
             "bank-eval.json", f"bank/{INDEX}", "bank/task-001.safetensors"],
)  # fmt: skip
@pytest.mark.parametrize("what", ["pipe", "endless", "sparse"])
def test_files_without_an_end_are_not_read(
    name: str, what: str, run: Path, refused: Callable[..., str]
) -> None:
    if what == "sparse" and name.endswith(".safetensors"):
        pytest.skip("weights may be large")
    (run / name).unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(run / name)
    elif what == "endless":
        (run / name).symlink_to("/dev/zero")
    else:
        (run / name).touch()
        os.truncate(run / name, 1 << 40)
    refused("verify", run)
    for command in (["bank", "show"], ["bank", "eval", "--mode", "latest"], ["landscape"]):
        if name in ("config.yaml", f"bank/{INDEX}", "bank/task-001.safetensors", "result.json"):
            refused(*command[:2], run, *command[2:])
    if name == "config.yaml":
        refused("--config", run / name)


def test_a_checkpoint_that_is_a_pipe_is_left_out(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(broken / CHECKPOINTS / f"999999-{'0' * 64}.safetensors")
    assert main(["--resume", str(broken), *PLUGIN]) == 0
    warning = "is not a regular file: restore the file: trying the previous checkpoint"
    assert warning in capsys.readouterr().err


def test_names_from_a_huge_file_are_not_read(tmp_path: Path, refused: Callable[..., str]) -> None:
    names = tmp_path / "names.txt"
    names.touch()
    os.truncate(names, 1 << 40)
    output = ["--output", tmp_path / "runs"]
    assert str(names) in refused(*COMMAND, "--set", f"clipfit.vocabulary={names}", *output)


def reseal_file(run: Path, kind: str, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of the first task, with the right hashes everywhere."""
    index = unseal((run / "bank" / INDEX).read_bytes())
    record = index["tasks"][0]["files"][kind]
    tensors = load((run / "bank" / record["name"]).read_bytes())
    tensors = change(tensors) or tensors
    data = save({name: value.contiguous() for name, value in tensors.items()})
    (run / "bank" / record["name"]).write_bytes(data)
    record["sha256"], record["bytes"] = sha256(data), len(data)
    if kind == "values":
        index["selection"] = {name: list(value.shape) for name, value in tensors.items()}
    (run / "bank" / INDEX).write_bytes(seal(index))


def every(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: {name: change(value) for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("values", every(lambda v: v.bool())), ("values", every(lambda v: v.long())),
        ("values", every(lambda v: v.half())), ("values", every(lambda v: v * float("nan"))),
        ("values", every(lambda v: torch.full_like(v, 3e38))),
        ("values", lambda tensors: {**tensors, "clip.other": torch.zeros(2)}),
        ("statistics", lambda tensors: {n: v for n, v in tensors.items() if n != "means"}),
        ("statistics", every(lambda v: v.flatten())),
        ("statistics", lambda tensors: {"x": torch.ones(1)}),
        ("statistics", lambda tensors: {**tensors, "means": tensors["means"] * float("inf")}),
    ],
    ids=["bool", "int64", "half", "nan", "huge", "other name", "no means", "flat", "other", "inf"],
)  # fmt: skip
def test_a_sealed_bank_of_anything_is_used_or_refused(
    kind: str, change: Any, run: Path, refused: Callable[..., str]
) -> None:
    reseal_file(run, kind, change)
    mode = "routed" if kind == "statistics" else "latest"  # only routing uses statistics
    assert "bank" in refused("bank", "eval", run, "--mode", mode, "--device", "cpu")


def forged(state: Any) -> bytes:
    return save(
        {"0": torch.zeros(1)}, {"state": state if type(state) is str else json.dumps(state)}
    )


@pytest.mark.parametrize(
    "data",
    [
        b"xx", b"\x02\0\0\0\0\0\0\0{}", forged("[1]"), forged([1]), forged("{"),
        forged({"schema": SCHEMA, "state": {"dict": []}}), forged({"schema": SCHEMA, "state": 1}),
        forged({"schema": SCHEMA, "state": {"eval": [1]}}), forged({"schema": SCHEMA, "state": {}}),
        forged({"schema": 99, "state": {}}), forged("[" * 100_000),
        forged({"schema": SCHEMA, "state": {"dict": []}, "parts": [1]}),
        forged({"schema": SCHEMA, "state": {"dict": []}, "parts": {"start": "../result.json"}}),
        forged({"schema": SCHEMA, "state": {"dict": []}, "parts": {}}),
    ],
    ids=range(14),
)  # fmt: skip
def test_a_forged_checkpoint_is_refused(
    data: bytes, broken: Path, refused: Callable[..., str]
) -> None:
    (broken / CHECKPOINTS / f"999999-{sha256(data)}.safetensors").write_bytes(data)
    before = content(broken)
    assert "--fresh" in refused("--resume", broken)
    assert content(broken) == before


def test_a_checkpoint_sets_nothing_but_what_a_method_remembers(
    broken: Path, refused: Callable[..., str]
) -> None:
    files = Checkpoints(broken, pytest.fail)
    state = files.load()
    assert state is not None
    state["at"] = None
    start = state["start"].value
    state["start"] = Part({**start, "state": {**start["state"], "device": "elsewhere"}})
    files.save(state)
    assert "device" in refused("--resume", broken)


def test_a_run_folder_of_more_than_one_run_is_refused(
    run: Path, refused: Callable[..., str]
) -> None:
    text = (run / "config.yaml").read_text()
    assert "seed:\n- 0\n" in text
    for seeds in (2, 1000):
        many = "".join(f"- {seed}\n" for seed in range(seeds))
        (run / "config.yaml").write_text(text.replace("seed:\n- 0\n", f"seed:\n{many}"))
        line = refused("bank", "show", run, "1")
        assert f"config.yaml names 1 strategies and {seeds} seeds" in line


@pytest.mark.parametrize(
    "command", [["landscape", "--images", "1", "--no-plane"], ["merge", "--method", "mean"]]
)
def test_folders_with_control_sequences_in_their_names_are_printed_harmlessly(
    command: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = run.parent.with_name("a\x1b[2Jb")
    run.parent.rename(place)
    capsys.readouterr()
    assert main([command[0], str(place / run.name), *command[1:], *PLUGIN]) == 0
    printed = capsys.readouterr()
    assert r"a\x1b[2Jb" in printed.out
    assert "\x1b" not in printed.out + printed.err


def test_what_goes_on_with_a_stopped_run_is_printed_harmlessly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: Any, **options: Any) -> None:
        stopped = Stopped(signal.SIGINT)
        stopped.advice = "run.py --resume 'a\x1b[2Jb' resumes it"
        raise stopped

    monkeypatch.setattr(command_line, "app", stop)
    assert main([]) == 130
    assert r"a\x1b[2Jb" in capsys.readouterr().err
