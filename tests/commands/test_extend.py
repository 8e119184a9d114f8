"""`extend`: a finished run learns further tasks, as if they had belonged to its stream."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.job import artefacts
from cl_clipfit import load_run
from cl_clipfit.cli.app import main
from cl_clipfit.registry import Registry
from tests.support.photos import write_photos
from tests.support.tiny import PLUGIN, TINY

# More classes than a vector register has lanes: sums over them are then split otherwise.
FISH = ("eel", *(f"fish {number}" for number in range(10, 26)))
QUICK = [*TINY, "--batch-size", "12", "--lr", "0.01", "--quiet", "--strategy"]
EXTENDS = {
    entry.name for entry in Registry().entries("strategies") if entry.strategy_class().extends
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two folders of images of new classes."""
    place = tmp_path_factory.mktemp("photos")
    return [write_photos(place / "birds", "crow", "owl"), write_photos(place / "fish", *FISH)]


def train(output: Path, *arguments: str | Path) -> Path:
    assert main([*QUICK, *map(str, arguments), "--output", str(output)]) == 0
    (path,) = output.glob("*/result.json")
    return path.parent


def extend(run: Path, *folders: Path) -> Path:
    """Return the folder of the extended run, which stands beside the other one."""
    before = {path.parent for path in run.parent.glob("*/result.json")}
    assert main(["extend", str(run), "--data-dir", *map(str, folders), *PLUGIN]) == 0
    (path,) = {path.parent for path in run.parent.glob("*/result.json")} - before
    return path


def runs_in(output: Path) -> dict[str, Any]:
    return {name: v for name, v in artefacts(output).items() if "comparison" not in name}


@pytest.mark.parametrize("method", ["clipfit", "lda", "stack"])
def test_an_extended_run_is_that_of_the_longer_stream(
    method: str, folders: list[Path], tmp_path: Path
) -> None:
    birds, fish = folders
    probe = ("--probe", "glyph-letters")
    whole = train(tmp_path / "whole", method, *probe, "--then", birds, fish)
    first = train(tmp_path / "parts", method, *probe)
    before = artefacts(first)
    last = extend(extend(first, birds), fish)
    assert artefacts(first) == before
    assert artefacts(last) == artefacts(whole)
    assert last.name == whole.name
    assert {file for file in artefacts(whole) if "state" in file} == (
        set() if method == "lda" else {"state.safetensors"}
    )
    assert main(["verify", str(last), *PLUGIN]) == 0
    model = load_run(last)
    assert model.class_names == [*(f"colour {n}" for n in range(6)), "crow", "owl", *FISH]
    assert [len(row) for row in model.result["accuracy_matrix"]] == [4] * 5
    assert model.predict([fish / "test" / "eel" / "0.png"], top=9)


def test_a_stopped_extension_is_resumed(
    folders: list[Path], tmp_path: Path, stop_at: Callable[[int], None]
) -> None:
    whole = train(tmp_path / "whole", "clipfit", "--epochs", "2", "--then", folders[0])
    first = train(tmp_path / "parts", "clipfit", "--epochs", "2")
    command = ["extend", str(first), "--data-dir", str(folders[0]), *PLUGIN]
    stop_at(2)
    assert main(command) == 143
    stop_at(0)
    assert main(command) == 0
    shutil.rmtree(first)
    assert runs_in(tmp_path / "parts") == runs_in(whole.parent)


def test_methods_that_depend_on_what_is_to_come_are_refused(
    folders: list[Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert {"clipfit", "lda", "stack"} <= EXTENDS
    assert not EXTENDS & {
        "joint", "linear-head", "mergetune", "wise-ft", "avalanche", "zero-shot", "mg-clip",
    }  # fmt: skip
    mine = train(tmp_path, "image-norms")
    says = refused("extend", mine, "--data-dir", folders[0], *PLUGIN)
    assert "image-norms cannot be extended" in says
    assert "--then FOLDER" in says


def test_what_cannot_be_continued_is_said_in_a_line(
    folders: list[Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    run = train(tmp_path / "runs", "bitfit")
    known = write_photos(tmp_path / "known", "colour 3")
    ask = ["extend", run, *PLUGIN, "--data-dir"]
    assert "'colour 3' is in the stream already" in refused(*ask, known)
    assert "there is no such folder" in refused(*ask, tmp_path / "nowhere")
    (run / "state.safetensors").write_bytes((run / "state.safetensors").read_bytes()[:-1] + b"x")
    assert "state.safetensors is damaged" in refused(*ask, folders[0])
    (run / "state.safetensors").unlink()
    assert "keeps no state to continue from" in refused(*ask, folders[0])
    assert "not a run folder" in refused("extend", tmp_path, *PLUGIN, "--data-dir", folders[0])
    blurry = [*QUICK, "lda", "--blurry", "0.2", "--then", folders[0], "--output", tmp_path / "x"]
    assert "--then: with --blurry" in refused(*blurry)


def test_new_classes_have_prompts_of_their_own(
    folders: list[Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    run = train(tmp_path / "runs", "lda")
    file = tmp_path / "prompts.csv"
    file.write_text("crow,a photo of a crow - a black bird\n")
    ask = [str(w) for w in ("extend", run, *PLUGIN, "--prompts", file, "--data-dir", folders[0])]
    assert main(ask) == 0
    (result,) = (p for p in run.parent.glob("*/result.json") if p.parent != run)
    templates = load_run(result.parent).result["templates"]
    assert templates == [
        *([["a photo of a {}."]] * 6), ["a photo of a crow - a black bird"], ["a photo of a {}."],
    ]  # fmt: skip
    file.write_text("colour 1,a dark square\n")
    assert "'colour 1' was learned by" in refused(*ask)
