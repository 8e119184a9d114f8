"""Images that cannot be read, in each place where a data set can have them."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cl_clipfit import RunConfig, UserError, load_scenario
from cl_clipfit.experiment.prepare import prepare
from cl_clipfit.runtime.progress import Progress

COUNT = 4  # images per class and part


def draw(root: Path, *places: str) -> Path:
    generator = np.random.default_rng(0)
    for place in places:
        (root / place).mkdir(parents=True)
        for number in range(COUNT):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / place / f"{number}.png")
    return root


def damage(file: Path, how: str) -> None:
    """Replace an image by what people's folders hold."""
    file.unlink()
    if how == "not fetched":  # as git-annex and datalad leave them
        file.symlink_to("../../.git/annex/objects/k0")
    elif how == "circle":
        file.symlink_to(file.name)
    elif how == "pipe":  # would be read for ever
        os.mkfifo(file)
    else:
        file.write_bytes({"empty": b"", "text": b"version https://git-lfs"}[how])


KINDS = ("not fetched", "circle", "pipe", "empty", "text")


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("how", KINDS)
def test_every_kind_is_named_or_left_out(tmp_path: Path, how: str, part: str) -> None:
    data = draw(tmp_path / "d", *(f"{p}/{c}" for p in ("train", "test") for c in "ab"))
    damage(data / part / "a" / "1.png", how)
    with pytest.raises(UserError, match=rf"1 of 8 images .*{part}/a/1\.png: .*--skip-bad-images"):
        load_scenario("folder", data_dir=data, model="mini", tasks=2)
    scenario = load_scenario("folder", data_dir=data, model="mini", tasks=2, skip_bad_images=True)
    assert len(scenario.train) + len(scenario.test) == 4 * COUNT - 1
    assert scenario.origin["skipped_images"] == 1
    assert scenario.origin["skipped"][0].startswith(f"{part}/a/1.png: ")


def test_the_first_five_are_named(tmp_path: Path) -> None:
    data = draw(tmp_path / "d", *(f"{p}/{c}" for p in ("train", "test") for c in "abc"))
    for name in "abc":
        for number, how in enumerate(("not fetched", "text")):
            damage(data / "train" / name / f"{number}.png", how)
    with pytest.raises(UserError, match="6 of 12 images") as caught:
        load_scenario("folder", data_dir=data, model="mini", tasks=2)
    assert str(caught.value).count(".png: ") == 5
    assert "; ...): repair or remove them" in str(caught.value)


def test_domains_leave_them_out_too(tmp_path: Path) -> None:
    data = draw(tmp_path / "d", *(f"{domain}/{c}" for domain in ("art", "photo") for c in "ab"))
    damage(data / "photo" / "b" / "0.png", "not fetched")
    given: dict[str, Any] = {"data_dir": data, "model": "mini"}
    with pytest.raises(UserError, match=r"photo/b/0\.png: a link whose target is missing"):
        load_scenario("domain-incremental", **given)
    scenario = load_scenario("domain-incremental", **given, skip_bad_images=True)
    assert scenario.origin["skipped"] == ["photo/b/0.png: a link whose target is missing"]


def test_those_of_a_probe_are_counted(tmp_path: Path) -> None:
    data = draw(tmp_path / "d", *(f"folder/{p}/{c}" for p in ("train", "test") for c in "ab"))
    damage(data / "folder" / "test" / "a" / "2.png", "not fetched")
    settings: dict[str, Any] = {
        "scenario": "split-digits", "strategy": ["zero-shot"], "data_dir": data,
        "probe": ["folder"], "shots": 1,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"test/a/2\.png: a link whose target is missing"):
        prepare(RunConfig(**settings, output=tmp_path / "o"), Progress())
    config = RunConfig(**settings, skip_bad_images=True, output=tmp_path / "o")
    prepared = prepare(config, Progress())
    skipped = ["folder/test/a/2.png: a link whose target is missing"]
    for _ in range(2):  # of every seed
        assert prepared.scenario(0).origin["skipped"] == skipped


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, which may read everything: the system's refusal is played."""
    data = draw(tmp_path / "d", *(f"{p}/{c}" for p in ("train", "test") for c in "ab"))
    locked = draw(data, "train/a/more").joinpath("train/a/more")

    def refusing(function: Any) -> Any:
        def call(path: Any = ".") -> Any:
            if not isinstance(path, int) and Path(path) == locked:  # pytest clears by descriptors
                raise PermissionError(13, "Permission denied", str(path))
            return function(path)

        return call

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    with pytest.raises(UserError, match=r"train/a/more: Permission denied\).*--skip-bad-images"):
        load_scenario("folder", data_dir=data, model="mini", tasks=2)
    scenario = load_scenario("folder", data_dir=data, model="mini", tasks=2, skip_bad_images=True)
    assert scenario.origin["skipped"] == ["train/a/more: Permission denied"]
    locked = data / "train" / "a"
    with pytest.raises(UserError, match=r"cannot read .*train/a: Permission denied"):
        load_scenario("folder", data_dir=data, model="mini", tasks=2, skip_bad_images=True)


def test_content_fetched_later_is_another_data_set(tmp_path: Path) -> None:
    data = draw(tmp_path / "d", *(f"{p}/{c}" for p in ("train", "test") for c in "ab"))
    file = data / "train" / "a" / "1.png"
    content = file.read_bytes()
    given: dict[str, Any] = {"data_dir": data, "model": "mini", "skip_bad_images": True}
    whole = load_scenario("folder", **given).origin["sha256"]
    damage(file, "not fetched")
    assert load_scenario("folder", **given).origin["sha256"] != whole
    file.unlink()
    file.write_bytes(content)
    assert load_scenario("folder", **given).origin["sha256"] == whole
