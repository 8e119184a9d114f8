"""Folders one level too high or too low, files in place of folders, and misplaced images."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from cl_clipfit import DataRequest, Source, UserError
from cl_clipfit.data.formats.trees import SplitOptions
from cl_clipfit.scenarios import domain_incremental, features, folder
from cl_clipfit.scenarios.domain_incremental import DomainOptions


def draw(root: Path, *places: str, count: int = 3) -> Path:
    for place in places:
        (root / place).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (4, 3), (number, 0, 0)).save(root / place / f"{number}.png")
    return root


def load(root: Path) -> Source:
    return folder.load(SplitOptions(), DataRequest(root))


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(root)
    return str(caught.value)


PARTS = tuple(f"{part}/{name}" for part in ("train", "test") for name in ("cat", "dog"))


def test_the_folder_above_a_data_set_is_not_one(tmp_path: Path) -> None:
    draw(tmp_path / "shapes", *PARTS)
    draw(tmp_path / "runs", "folder-zero-shot-s0-01234567")
    line = refusal(tmp_path)
    assert f"one level above a data set, which is {tmp_path}/shapes with its train/ and" in line
    shutil.rmtree(tmp_path / "shapes")
    draw(tmp_path / "shapes", "cat", "dog")
    (line,) = load(tmp_path).warnings
    assert line.startswith(f"all images of {tmp_path} are in folders inside those of its 2 classes")
    assert "(runs, shapes): if these are the classes, name the folder that holds them" in line
    (tmp_path / "runs" / "folder-zero-shot-s0-01234567" / "result.json").touch()
    line = refusal(tmp_path)
    assert "runs/folder-zero-shot-s0-01234567 holds the figures of a run, not images" in line
    draw(tmp_path / "shapes" / "cat" / "deep", "deeper")
    assert load(tmp_path / "shapes").warnings == ()


def test_a_class_in_place_of_its_parent(tmp_path: Path) -> None:
    data = draw(tmp_path / "plants", "oak", "ash")
    assert "oak holds images but no folders of classes" in refusal(data / "oak")
    assert "name the folder above it" in refusal(data / "oak")
    draw(data, "oak/young", "oak/old")
    (line,) = load(data / "oak").warnings
    assert line.startswith(f"3 images directly in {data}/oak, such as 0.png, are in the folder of")


def test_a_file_in_place_of_a_folder_and_the_reverse(tmp_path: Path) -> None:
    archive = tmp_path / "plants.zip"
    archive.touch()
    assert f"{archive} is a file: --data-dir names a folder" in refusal(archive)
    with pytest.raises(UserError, match=r"plants\.zip is a file: --data-dir names a folder"):
        domain_incremental.load(DomainOptions(), DataRequest(archive))
    with pytest.raises(UserError, match=r"is a folder: --data-dir must name a \.npz"):
        features.load(SplitOptions(), DataRequest(tmp_path))


def test_links_that_bring_training_images_into_the_test(tmp_path: Path) -> None:
    data = draw(tmp_path, *PARTS)
    assert load(data).warnings == ()
    shutil.rmtree(data / "test")
    (data / "test").symlink_to("train")
    (line,) = load(data).warnings
    assert line.startswith("6 of 6 test images are training images too, by links, the first is")
    (data / "test").unlink()
    draw(data, "test/cat", "test/dog")
    os.link(data / "train/cat/0.png", data / "test/dog/cat.png")
    overlap, classes = load(data).warnings
    assert overlap.startswith("1 of 7 test images are training images too")
    assert classes.startswith("1 images are in several classes, by links, the first is")
    assert classes.endswith("train/cat/0.png and " + str(data / "test/dog/cat.png"))
