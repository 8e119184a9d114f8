"""Methods that do not train decode no training image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cl_clipfit.cli.app import main
from cl_clipfit.data.images import lazy
from cl_clipfit.storage.run_folder import read_result

PLUGIN = """
from cl_clipfit import CLIPStrategy
class Mine(CLIPStrategy):
    learning = "{}"
"""


@pytest.fixture
def decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Write a folder of images, and record the files that are decoded."""
    monkeypatch.setenv(
        "CL_CLIPFIT_DATA", str(tmp_path / "cache")
    )  # without features of another test
    draws = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog", "bird", "fish"):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for number in range(3):
                image = draws.integers(0, 255, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(image).save(folder / f"{number}.png")
    files: list[Path] = []
    read = lazy.open_in_thread
    monkeypatch.setattr(lazy, "open_in_thread", lambda path: files.append(path) or read(path))
    return files


@pytest.mark.parametrize("gib", ["1", "0"], ids=["in memory", "decoded at every use"])
@pytest.mark.parametrize(
    ("strategies", "trains"),
    [
        (["zero-shot"], False), (["mine-none"], False), (["zero-shot", "mine-none"], False),
        (["zero-shot", "linear-head"], True), (["mine-closed-form"], True),
    ],
    ids=str,
)  # fmt: skip
def test_training_images_are_decoded_only_to_train(
    strategies: list[str], trains: bool, gib: str, decoded: list[Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("CL_CLIPFIT_IMAGE_GIB", gib)
    plugins = []
    for learning in ("none", "closed-form"):
        plugins.append(tmp_path / f"mine_{learning.replace('-', '_')}.py")
        plugins[-1].write_text(PLUGIN.format(learning))
    command = [
        "--scenario", "folder", "--model", "mini", "--tasks", "2", "--data-dir",
        str(tmp_path / "data"), "--epochs", "1", "--quiet", "--strategy", *strategies,
        "--plugin", *map(str, plugins), "--probe", "--output", str(tmp_path / "o"),
    ]  # fmt: skip
    assert main(command) == 0
    parts = {path.parent.parent.name for path in decoded}
    assert "test" in parts
    if not trains or gib == "1":
        assert ("train" in parts) == trains
    for file in (tmp_path / "o").glob("*/result.json"):
        result = read_result(file)
        assert result is not None
        assert [task["train_samples"] for task in result["tasks"]] == [6, 6]
