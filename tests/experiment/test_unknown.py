"""`predict --unknown`: an image is left open by what the run has measured on training images."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from cl_clipfit import UserError, load_run
from cl_clipfit.cli.app import main
from cl_clipfit.experiment.calibration import sureness
from tests.support.tiny import PLUGIN, TINY, build_source

QUICK = ["--tasks", "2", "--epochs", "1", "--lr", "0.01", "--quiet"]
SOURCE = build_source()


def train(folder: Path, method: str) -> Path:
    """Return the folder of a finished run."""
    assert main([*TINY, *QUICK, "--strategy", method, "--output", str(folder)]) == 0
    return next(folder.glob("*/result.json")).parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of a closed-form head, which tells the classes apart."""
    return train(tmp_path_factory.mktemp("lda"), "lda")


@pytest.fixture(scope="module")
def photos(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder: an image of a class, and one that the run is unsure of."""
    folder, model = tmp_path_factory.mktemp("photos"), load_run(run)
    draw = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (200, 3, 16, 16), dtype=torch.uint8, generator=draw)
    unsure = noise[sureness(model.strategy.score_all(noise)[:, list(model.classes)]).argmin()]
    for name, image in {"known": SOURCE.train.images[0], "odd": unsure}.items():
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("method", ["lda", "clipfit"])
def test_five_of_a_hundred_training_images_are_below_the_threshold(
    method: str, tmp_path: Path
) -> None:
    run = train(tmp_path, method)
    kept = json.loads((run / "calibration.json").read_text())
    assert kept["training_images"] == len(SOURCE.train.images) == 48
    model = load_run(run)
    scores = model.strategy.score_all(SOURCE.train.images)[:, list(model.classes)].double()
    p = scores.softmax(1).amax(1).sort().values[2]  # 5 % of 48
    if method == "clipfit":  # of the head, p is 1 up to rounding
        assert kept["threshold"] == pytest.approx(float(p.logit()), rel=1e-5)
    opened = [not labels for labels in model.predict(SOURCE.train.images, unknown=True)]
    assert sum(opened) == 2
    assert main(["verify", str(run)]) == 0
    assert "calibration.json" in (run / "MANIFEST.sha256").read_text()


def test_images_that_fit_no_class_are_left_open(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, files = load_run(run), [photos / "known.png", photos / "odd.png"]
    known, odd = model.predict(files, top=2, unknown=True)
    assert known == model.predict(files, top=2)[0]
    assert odd == []
    assert len(model.predict(files)[1]) == 5  # only if it is asked for
    command = ["predict", str(run)]
    capsys.readouterr()
    assert main([*command, *map(str, files), "--unknown", "--top", "2", *PLUGIN]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{files[0]}: colour ")
    assert second == f"{files[1]}: unknown"
    assert main([*command, str(photos), "--unknown", "--top", "2", *PLUGIN]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == ["image", "class_1", "probability_1", "class_2", "probability_2"]
    assert rows[2] == [str(files[1]), "unknown", "", "", ""]


def test_a_run_without_a_threshold_says_so(
    run: Path, photos: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    file, arguments = copy / "calibration.json", (photos, "--unknown", *PLUGIN)
    for text in ("[]", "{", '{"threshold": NaN}', '{"threshold": "x"}'):
        file.write_text(text)
        assert "is not what a run writes" in refused("predict", copy, *arguments)
    file.unlink()
    assert "it keeps no calibration.json" in refused("predict", copy, *arguments)
    with pytest.raises(UserError, match="with --fresh"):
        load_run(copy).predict(SOURCE.test.images[:1], unknown=True)
