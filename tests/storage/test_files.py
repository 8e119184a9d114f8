"""How files are written: with the permissions of the umask, and with errors that are told."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from cl_clipfit.cli.app import main
from cl_clipfit.errors import UserError
from cl_clipfit.storage.checkpoints import Checkpoints
from cl_clipfit.storage.files import reading, writing
from cl_clipfit.storage.lock import LOCK, hold
from tests.support.tiny import PLUGIN, TRAINED

FILES = {
    "config.yaml", "result.json", "accuracy_matrix.csv", "MANIFEST.sha256", "curves.png",
    "bank/index.json", "bank/task-001.safetensors", "bank-eval.csv",
}  # fmt: skip


@pytest.fixture(params=[0o077, 0o022, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Set the umask for a test, and return it."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_command_respects_the_umask(umask: int, tmp_path: Path) -> None:
    output = tmp_path / "runs"
    assert main([*TRAINED, "--tasks", "2", "--quiet", "--output", str(output)]) == 0
    (run,) = output.glob("*-s0-*")
    assert main(["bank", "eval", str(run), "--mode", "mean", *PLUGIN]) == 0
    export = ["bank", "export", str(run), str(output / "mean.safetensors"), "--mode", "mean"]
    assert main([*export, *PLUGIN]) == 0
    modes = {path: mode(path) for path in output.rglob("*")}
    assert {str(path.relative_to(run)) for path in modes if run in path.parents} >= FILES
    wrong = {
        str(path): oct(bits)
        for path, bits in modes.items()
        if bits != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert wrong == {}


def test_what_a_run_in_progress_holds_respects_the_umask(umask: int, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, lambda text: None)
    checkpoints.save({"x": torch.zeros(2)})
    with hold(tmp_path):
        assert mode(tmp_path / LOCK) == 0o666 & ~umask
    assert checkpoints.newest is not None
    assert mode(checkpoints.newest) == 0o666 & ~umask


@pytest.mark.parametrize(("verb", "around"), [("write", writing), ("read", reading)])
def test_an_error_of_the_system_becomes_one_line(
    verb: str, around: Callable[[Path], AbstractContextManager[None]], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught, around(Path("/there")):
        (tmp_path / "absent").stat()
    assert str(caught.value) == f"cannot {verb} /there: No such file or directory"
    with pytest.raises(UserError, match="another line"), around(Path("/there")):
        raise UserError("another line")
    with pytest.raises(UserError) as caught, reading():
        (tmp_path / "absent").stat()
    assert str(caught.value) == f"cannot read {tmp_path / 'absent'}: No such file or directory"
