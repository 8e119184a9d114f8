"""What is wrong reaches the user as it was said, from wherever it was raised."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from cl_clipfit.data.images.lazy import ImageFiles, LazyImages
from cl_clipfit.errors import UserError, nearest, program
from cl_clipfit.runtime.workers import send_errors_whole
from tests.support.tiny import build_tiny

MESSAGE = "a/errors.UserError: b: it is\tno image\nat all"


def fail_as_user() -> None:
    raise UserError(MESSAGE, reason="it is \x1b[2J")


def fail_otherwise() -> None:
    raise ValueError("a bug")


def begin(number: int) -> None:
    """Begin a worker process, which SIGTERM still ends: the error caught keeps it alive."""
    send_errors_whole()


class Failing(Dataset[int]):
    """A data set that cannot be read."""

    def __init__(self, fail: Callable[[], None]) -> None:
        self.fail = fail

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        self.fail()
        return index


def test_a_reason_is_the_message_unless_it_is_given_and_is_pickled() -> None:
    assert UserError("x \x1b").reason == str(UserError("x \x1b")) == r"x \x1b"
    error = pickle.loads(pickle.dumps(UserError("place: why", reason="why")))
    assert (str(error), error.reason) == ("place: why", "why")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_out_of_a_worker_process_as_it_was_raised(workers: int) -> None:
    loader = DataLoader(Failing(fail_as_user), num_workers=workers, worker_init_fn=begin)
    with pytest.raises(UserError) as caught:
        list(loader)
    assert str(caught.value) == MESSAGE
    assert caught.value.reason == r"it is \x1b[2J"
    if workers:
        assert "Traceback" in str(caught.value.__cause__)


def test_another_error_comes_with_its_traceback() -> None:
    loader = DataLoader(Failing(fail_otherwise), num_workers=1, worker_init_fn=begin)
    with pytest.raises(ValueError, match=r"(?s)worker process 0.*Traceback.*a bug"):
        list(loader)


def test_the_reason_of_an_image_is_told_without_its_file(tmp_path: Path) -> None:
    file = tmp_path / "x cannot be read as an image: y.png"
    file.write_bytes(b"none")
    images = LazyImages([ImageFiles((file,))], build_tiny().preprocess)
    assert images.decode()[1] == [(0, "not an image of a supported format")]


@pytest.mark.parametrize(
    ("started", "typed"),
    [
        ("run.py", "venv/bin/python run.py"),
        ("../my runs/run.py", "venv/bin/python '../my runs/run.py'"),
        ("/elsewhere/cl-clipfit", "/elsewhere/cl-clipfit"),
        ("{here}/venv/bin/cl-clipfit", "venv/bin/cl-clipfit"),
        ("{here}/bin/cl-clipfit", "cl-clipfit"),  # on the PATH
        ("/x/cl_clipfit/__main__.py", "venv/bin/python -m cl_clipfit"),
        ("/x/ipykernel_launcher.py", "venv/bin/python -m cl_clipfit"),
    ],
)
def test_commands_in_messages_can_be_pasted(
    started: str, typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "bin" / "cl-clipfit"
    command.parent.mkdir()
    command.touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(command.parent))
    monkeypatch.setattr("sys.executable", str(tmp_path / "venv" / "bin" / "python"))
    monkeypatch.setattr("sys.argv", [started.format(here=tmp_path)])
    assert program() == typed


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("vit-b-16", "ViT-B-16"),
        ("VIT-B-32-QUICKGELU", "ViT-B-32-quickgelu"),
        ("CLIPFit", "clipfit"),
        ("Split_Digits", "split-digits"),
        ("rn50", "RN50"),
    ],
)
def test_names_are_compared_without_regard_to_case(name: str, close: str) -> None:
    names = ["ViT-B-16", "ViT-S-16", "ViT-B-32-quickgelu", "clipfit", "coop", "split-digits",
             "RN50", "RN101"]  # fmt: skip
    assert nearest(name, names) == f"Did you mean '{close}'?"


def test_a_list_of_names_fills_two_lines_at_most() -> None:
    assert nearest("%", ["b", "a"]) == "Known: a, b."
    assert len(nearest("%", [f"model-{n}" for n in range(1000)])) <= 160 + len("Known: .")
