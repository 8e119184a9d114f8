"""`load_run` and `predict`: a finished run classifies new images as it did when it was scored."""

import csv
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cl_clipfit import load_run
from cl_clipfit.cli.app import main
from cl_clipfit.errors import UserError
from tests.support.tiny import PLUGIN, TINY, build_source

QUICK = ["--tasks", "2", "--epochs", "1", "--lr", "0.01", "--quiet"]
IMAGES = build_source().test.images


def train(folder: Path, *more: str) -> Path:
    """Return the folder of a finished run of the tiny stream."""
    assert main([*TINY, *QUICK, *more, "--output", str(folder)]) == 0
    return next(folder.glob("*/result.json")).parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of a closed-form head, which tells the classes apart."""
    return train(tmp_path_factory.mktemp("lda"), "--strategy", "lda")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images: one of each class, one below, one that cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for label in range(6):
        image = Image.fromarray(IMAGES[8 * label].permute(1, 2, 0).numpy())
        image.save(folder / ("more" if label == 5 else ".") / f"{label}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def test_images_are_tensors_files_or_of_pil(run: Path, photos: Path) -> None:
    model = load_run(run)
    files = [photos / f"{label}.png" for label in range(5)]
    from_files = model.probabilities(files)
    assert from_files.shape == (5, 6)
    assert from_files.sum(1).tolist() == pytest.approx([1.0] * 5)
    assert torch.equal(from_files, model.probabilities([Image.open(file) for file in files]))
    assert torch.equal(from_files, model.probabilities(IMAGES[:40:8]))
    (first, *_), top = model.predict([str(files[3])], top=2)[0], model.predict(files, top=99)
    assert first == ("colour 3", pytest.approx(float(from_files[3].max())))
    assert [len(labels) for labels in top] == [6] * 5
    with pytest.raises(UserError, match="cannot be read as an image"):
        model.predict([photos / "broken.jpg"])


def test_the_data_need_not_be_there(tmp_path: Path) -> None:
    for name in ("train", "test"):
        for label, colour in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9))):
            folder = tmp_path / "data" / name / f"class{label}"
            folder.mkdir(parents=True)
            for n in range(3):
                Image.new("RGB", (20 + n, 16), colour).save(folder / f"{n}.png")
    data = ["--scenario", "folder", "--data-dir", str(tmp_path / "data"), "--model", "mini"]
    command = [*data, "--strategy", "lda", "--tasks", "2", "--quiet"]
    assert main([*command, "--output", str(tmp_path / "runs")]) == 0
    shutil.rmtree(tmp_path / "data")
    (path,) = (tmp_path / "runs").glob("*/result.json")
    model = load_run(path.parent)
    assert model.predict([Image.new("RGB", (30, 30), (0, 255, 0))])[0][0][0] == "class1"


def predicted(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    capsys.readouterr()
    assert main(["predict", *arguments, *PLUGIN]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_files_are_answered_with_a_line_each(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = predicted(
        capsys, str(run), str(photos / "2.png"), str(photos / "broken.jpg"), "--top", "2"
    )
    (line,) = out.splitlines()
    assert line.startswith(f"{photos / '2.png'}: colour 2 ")
    assert line.count("%") == 2
    assert "broken.jpg left out: not an image of a supported format" in err


def test_a_folder_is_answered_in_csv(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = predicted(capsys, str(run), str(photos))
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [Path(row["image"]).stem for row in rows] == list("012345")
    assert [row["class_1"] for row in rows] == [f"colour {label}" for label in range(6)]
    assert all(0 <= float(row["probability_5"]) <= float(row["probability_1"]) for row in rows)
    file = tmp_path / "new.csv"
    out, err = predicted(capsys, str(run), str(photos), "--output", str(file))
    assert out == ""
    assert f"written: {file}, 6 images" in err
    assert list(csv.DictReader(io.StringIO(file.read_text()))) == rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN"], "name at least one image file or folder"),
        (["RUN", "nowhere.png"], "there is no such file or folder"),
        (["RUN", "BROKEN"], "none of 1 files can be read as an image"),
        (["EMPTY", "BROKEN"], "no finished run is in this folder"),
        (["RUN", "EMPTY"], "no image is in this folder"),
        (["RUN", "GOOD", "--top", "0"], "--top"),
    ],
)
def test_what_cannot_be_predicted_is_said_in_a_line(
    arguments: list[str], message: str, run: Path, photos: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    places: dict[str, Any] = {
        "RUN": run, "BROKEN": photos / "broken.jpg", "GOOD": photos / "1.png", "EMPTY": tmp_path,
    }  # fmt: skip
    if arguments[0] == "EMPTY":
        places["BROKEN"] = photos / "1.png"
    capsys.readouterr()
    assert main(["predict", *(str(places.get(a, a)) for a in arguments), *PLUGIN]) == 2
    err = capsys.readouterr().err.splitlines()
    assert message in err[-1]
    assert err[-1].startswith("error: ")


def test_a_changed_bank_is_refused(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (head,) = (copy / "bank").glob("task-002*.safetensors")
    head.write_bytes(head.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="damaged"):
        load_run(copy)


def test_classes_are_renamed_and_removed_afterwards(run: Path) -> None:
    model = load_run(run)
    before = model.probabilities(IMAGES)
    model.rename({"colour 0": "red", "colour 1": "colour 0"})
    assert model.class_names[:3] == ["red", "colour 0", "colour 2"]
    assert torch.equal(model.probabilities(IMAGES), before)
    assert model.predict(IMAGES[8:9], top=1)[0][0][0] == "colour 0"
    model.remove(["colour 0", "colour 5"])
    assert model.class_names == ["red", "colour 2", "colour 3", "colour 4"]
    kept = model.strategy.score_all(IMAGES)[:, [0, 2, 3, 4]].softmax(1)
    assert torch.equal(model.probabilities(IMAGES), kept)
    for change, says in (
        (lambda: model.rename({"colour 0": "blue"}), "tells no class"),
        (lambda: model.rename({"red": "colour 2"}), "the name of another class"),
        (lambda: model.remove(["red", "colour 2", "colour 3", "colour 4"]), "one class must stay"),
        (lambda: model.set_prompts({"red": ["a red square"]}), "does not classify by prompts"),
    ):
        with pytest.raises(UserError, match=says):
            change()


def test_prompts_are_those_of_a_file_or_set_afterwards(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text(
        "class,prompt\ncolour 2,a green square\ncolour 2,a drawing of a green square\n"
        "colour 4,a sketch of a {}\n"
    )
    model = load_run(train(tmp_path / "file", "--strategy", "zero-shot", "--prompts", str(file)))
    assert model.result["templates"] == [
        *([["a photo of a {}."]] * 2), ["a green square", "a drawing of a green square"],
        ["a photo of a {}."], ["a sketch of a {}"], ["a photo of a {}."],
    ]  # fmt: skip
    other = load_run(train(tmp_path / "plain", "--strategy", "zero-shot"))
    plain = other.probabilities(IMAGES)
    assert not torch.equal(plain, model.probabilities(IMAGES))
    green = ["a green square", "a drawing of a green square"]
    other.set_prompts({"colour 2": green, "colour 4": ["a sketch of a {}"]})
    torch.testing.assert_close(other.probabilities(IMAGES), model.probabilities(IMAGES))
    with pytest.raises(UserError, match="tokens, and this model reads"):
        other.set_prompts({"colour 2": ["green " * 99]})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("colour 9,a square\n", "line 1: unknown class 'colour 9'. Did you mean"),
        ("colour 1\n", "line 1: expected a class and a prompt"),
        ("class,prompt\ncolour 1,{} or {}\n", "line 2: a prompt has one '{}' at most"),
        ("class,prompt\n", "holds no prompt"),
    ],
)
def test_a_file_of_prompts_is_checked(
    content: str, says: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "prompts.csv").write_text(content)
    command = [*TINY, *QUICK, "--strategy", "lda", "--output", tmp_path / "runs"]
    assert says in refused(*command, "--prompts", tmp_path / "prompts.csv")
