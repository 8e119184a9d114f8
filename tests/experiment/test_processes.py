"""Several processes train as one does, whatever ends or resumes them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import get_worker_info

from cl_clipfit.cli.app import main
from cl_clipfit.clip import classifier
from cl_clipfit.clip.encoders.towers import Towers
from cl_clipfit.data.images.lazy import LazyImages
from cl_clipfit.storage.checkpoints import Checkpoints
from tests.support.kills import stop_in_step
from tests.support.several import errors, printed, several
from tests.support.tiny import PLUGIN, TINY

METHODS = ["clipfit", "mergetune", "coop", "stack", "ranpac"]
# Batches of 15, 8 and 7 of which each of two processes encodes, and a last one of 9. SGD, because
# AdamW divides gradients that are all rounding by themselves.
SMALL = [*TINY, "--tasks", "2", "--epochs", "2", "--batch-size", "15", "--lr", "0.01"]
SMALL += ["--probe", "tiny-stream", "--quiet"]
TABLES = ("accuracy_matrix", "all_classes_matrix", "task_aware_matrix")


def run(folder: Path, *more: str) -> int:
    settings = [f"{name}.optimizer=sgd" for name in METHODS if name != "ranpac" and name in more]
    words = [*SMALL, "--output", str(folder), *more]
    return main([*words, "--set", *settings] if settings else words)


def in_two(folder: Path, *more: str, patch: Any = None) -> list[int]:
    """Run a command in two processes; `patch` prepares each."""

    def work(rank: int) -> int:
        classifier._SHARED_FROM = 1  # few prompts are divided too
        if patch is not None:
            patch(rank)
        return run(folder, *more)

    return several(2, work, folder / "printed")


def one_folder(output: Path, method: str) -> Path:
    (folder,) = output.glob(f"tiny-stream-{method}-*")
    return folder


def assert_equal_runs(one: Path, other: Path) -> None:
    """Compare weights to 1e-5, statistics relatively, and tables to an image a cell."""
    files = sorted((one / "bank").glob("*.safetensors"))
    assert len(files) >= 2
    for file in files:
        tensors, others = load_file(file), load_file(other / "bank" / file.name)
        assert tensors.keys() == others.keys()
        for name, value in tensors.items():
            scale = 1.0 if name.startswith("clip.") else max(1.0, float(value.abs().max()))
            torch.testing.assert_close(others[name], value, rtol=0, atol=1e-5 * scale, msg=name)
    result, again = (json.loads((run / "result.json").read_text()) for run in (one, other))
    for table in TABLES:
        for row, row_again in zip(result[table], again[table], strict=True):
            for cell, cell_again, images in zip(
                row, row_again, [t["test_samples"] for t in result["tasks"]], strict=True
            ):
                assert (cell is None) == (cell_again is None)
                assert cell is None or abs(cell - cell_again) <= 100 / images + 1e-9
    for name, row in result["probes"].items():
        assert row == pytest.approx(again["probes"][name], abs=100 / 48 + 1e-9)
    assert result["kept"]["bytes"] == again["kept"]["bytes"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the runs of a single process."""
    folder = tmp_path_factory.mktemp("alone")
    assert run(folder, "--strategy", *METHODS) == 0
    return folder


def test_two_processes_train_as_one(alone: Path, tmp_path: Path) -> None:
    assert in_two(tmp_path, "--strategy", *METHODS) == [0, 0], printed(tmp_path / "printed")
    for method in METHODS:
        assert_equal_runs(one_folder(alone, method), one_folder(tmp_path, method))
        environment = json.loads((one_folder(tmp_path, method) / "result.json").read_text())
        assert environment["environment"]["processes"] == 2
    shown = [file.read_text() for file in sorted((tmp_path / "printed").glob("*.txt"))]
    assert "run folder" in shown[0]
    assert not shown[1]
    assert main(["verify", str(one_folder(tmp_path, "clipfit"))]) == 0


def kill_second(rank: int) -> None:
    """Kill the second process in a step."""
    if rank == 1:
        patch, steps = pytest.MonkeyPatch(), [0]
        encode = Towers.encode_prompts

        def counted(self: Towers, *args: Any) -> torch.Tensor:
            steps[0] += torch.is_grad_enabled()
            if steps[0] == 7:  # in the second epoch of the second task
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(self, *args)

        patch.setattr(Towers, "encode_prompts", counted)


def test_what_two_processes_began_one_resumes(alone: Path, tmp_path: Path) -> None:
    codes = in_two(tmp_path, "--strategy", "clipfit", patch=kill_second)
    assert codes == [2, -signal.SIGKILL], printed(tmp_path / "printed")
    lines = printed(tmp_path / "printed")
    assert sum("has lost another one" in line for line in lines) == 1
    assert not any("Traceback" in line for line in lines)
    folder = one_folder(tmp_path, "clipfit")
    damage: list[str] = []
    saved = Checkpoints(folder, damage.append).load()
    assert saved is not None and saved["at"] is not None and not damage
    assert run(tmp_path, "--strategy", "clipfit") == 0
    assert_equal_runs(one_folder(alone, "clipfit"), folder)


def test_what_one_process_began_two_stop_together_and_resume(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_step(monkeypatch, 2)
    assert run(tmp_path, "--strategy", "mergetune") == 143
    monkeypatch.undo()

    def stop_second(rank: int) -> None:
        stop_in_step(pytest.MonkeyPatch(), 3 if rank == 1 else 0)

    assert in_two(tmp_path, "--strategy", "mergetune", patch=stop_second) == [143, 143]
    lines = [text for text in printed(tmp_path / "printed") if "stopped by" in text]
    (line,) = lines
    assert line.endswith("resumes it")
    assert in_two(tmp_path, "--strategy", "mergetune") == [0, 0], printed(tmp_path / "printed")
    assert_equal_runs(one_folder(alone, "mergetune"), one_folder(tmp_path, "mergetune"))


def test_all_repeat_a_step_for_which_one_has_no_memory(alone: Path, tmp_path: Path) -> None:
    def lack(rank: int) -> None:
        if rank == 1:
            patch, encode = pytest.MonkeyPatch(), Towers.encode_images

            def limited(self: Towers, clip: Any, images: torch.Tensor, how: Any) -> torch.Tensor:
                if torch.is_grad_enabled() and len(images) > 4:
                    raise torch.OutOfMemoryError("out of memory")
                return encode(self, clip, images, how)

            patch.setattr(Towers, "encode_images", limited)

    assert in_two(tmp_path, "--strategy", "clipfit", patch=lack) == [0, 0]
    folder = one_folder(tmp_path, "clipfit")
    assert_equal_runs(one_folder(alone, "clipfit"), folder)
    result = json.loads((folder / "result.json").read_text())
    assert result["micro_batch"] == 4
    assert "out of memory: 4 images at a time from now on" in result["warnings"]


def test_each_reads_its_share_of_image_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = torch.Generator().manual_seed(0)
    for split, count in (("train", 4), ("test", 2)):
        for name in ("red", "green", "blue", "grey"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 256, (20, 20, 3), generator=draws).byte()
                Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    monkeypatch.setenv("CL_CLIPFIT_IMAGE_GIB", "0")  # so that files are read at every use
    folder = ["--scenario", "folder", "--data-dir", str(tmp_path / "photos"), "--model", "mini"]
    words = [*folder, *PLUGIN, *SMALL[len(TINY) :], "--strategy", "clipfit", "lda"]
    words += ["--set", "clipfit.optimizer=sgd", "--batch-size", "3"]  # the last batch has two
    read = LazyImages._read

    def log_into(name: str) -> None:
        def logged(self: LazyImages, row: int) -> torch.Tensor:
            if get_worker_info() is not None:  # in training, by the processes of a loader
                with (tmp_path / name).open("a") as log:
                    log.write(".")
            return read(self, row)

        monkeypatch.setattr(LazyImages, "_read", logged)

    def work(rank: int) -> int:
        log_into(f"read-{rank}")
        return main([*words, "--output", str(tmp_path / "two")])

    log_into("read")
    assert main([*words, "--output", str(tmp_path / "one")]) == 0
    assert several(2, work, tmp_path / "printed") == [0, 0], printed(tmp_path / "printed")
    counts = [(tmp_path / f"read{n}").stat().st_size for n in ("", "-0", "-1")]
    # In each of two epochs of two tasks, batches of 3, 3 and 2 images.
    assert counts == [4 * 8, 4 * (2 + 2 + 1), 4 * (1 + 1 + 1)]
    for one in (tmp_path / "one").glob("folder-*-s0-*"):
        assert_equal_runs(one, tmp_path / "two" / one.name)


def test_a_batch_of_fewer_images_than_processes_is_refused_once(tmp_path: Path) -> None:
    assert in_two(tmp_path, "--strategy", "clipfit", "--batch-size", "1") == [2, 2]
    (line,) = errors(tmp_path / "printed")
    assert line.startswith("error: 2 processes share a batch of 1 images (clipfit): use fewer")


def test_the_error_shown_is_the_cause_not_that_another_process_ended(tmp_path: Path) -> None:
    codes = in_two(tmp_path, "--strategy", "clipfit", "--set", "zscl.lr=1")  # refused by the first
    assert codes == [2, 2]
    (line,) = errors(tmp_path / "printed")
    assert line.startswith("error: --set zscl: not part of this run")


def test_torchrun_runs_training_alone(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "2", "run.py", "list", "strategies"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines == ["error: list: a single process executes it: start it without torchrun"]
