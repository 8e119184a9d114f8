"""Streams over features computed elsewhere: no tower, names may repeat, files good and bad."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.metrics import accuracy_score

from cl_clipfit.cli.app import main
from cl_clipfit.clip.feature_classifier import FeatureClassifier
from cl_clipfit.data.formats.feature_files import read_features
from cl_clipfit.errors import UserError
from cl_clipfit.storage.run_folder import read_result
from tests.support.feature_files import arrays


def write(file: Path, content: dict[str, Any]) -> Path:
    if file.suffix == ".npz":
        np.savez(file, **content)
        return file
    tensors = {k: torch.from_numpy(v) for k, v in content.items() if k != "classnames"}
    names = json.dumps(content["classnames"].tolist())
    safetensors.torch.save_file(tensors, file, {"classnames": names})
    return file


def expected_last(content: dict[str, Any]) -> float:
    """Nearest text feature by cosine, in NumPy."""
    x, text = (content[k].astype(np.float64) for k in ("test_x", "text"))
    cosines = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (
        text / np.linalg.norm(text, axis=1, keepdims=True)
    ).T
    return 100 * accuracy_score(content["test_y"], cosines.argmax(1))


def run(*arguments: str, output: Path) -> dict[str, Any]:
    assert main(["--scenario", "features", *arguments, "--output", str(output), "--quiet"]) == 0
    (folder,) = (p for p in output.iterdir() if p.is_dir())
    result = read_result(folder / "result.json")
    assert result is not None
    return result


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize("order", ["natural", "seed:4"])
def test_zero_shot_is_the_nearest_text_feature(tmp_path: Path, kind: str, order: str) -> None:
    content = arrays()
    file = write(tmp_path / f"f.{kind}", content)
    result = run(
        "--data-dir", str(file), "--tasks", "3", "--strategy", "zero-shot", "--class-order", order,
        output=tmp_path / "runs",
    )  # fmt: skip
    assert result["metrics"]["last_accuracy"] == pytest.approx(expected_last(content))
    assert 50 < result["metrics"]["last_accuracy"] < 100
    assert result["model"]["architecture"] == "features"
    names = [name for task in result["tasks"] for name in task["classes"]]
    assert names == [str(content["classnames"][label]) for label in result["class_order"]]
    assert sorted(names).count("crane") == 2


def test_a_head_learns_on_features_and_its_bank_is_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "f.npz", arrays())
    result = run(
        "--data-dir", str(file), "--tasks", "3", "--strategy", "linear-head", "--lr", "0.02",
        "--class-order", "seed:1", output=tmp_path / "runs",
    )  # fmt: skip
    before, after = result["all_classes_matrix"][0], result["all_classes_matrix"][-1]
    assert sum(after) != sum(before)
    (folder,) = (p for p in (tmp_path / "runs").iterdir() if p.is_dir())
    assert main(["bank", "eval", str(folder), "--mode", "latest"]) == 0
    modes = json.loads((folder / "bank-eval.json").read_text())["modes"]
    assert modes[0]["metrics"]["last_accuracy"] == result["metrics"]["last_accuracy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "clipfit"], "image and text tower"),
        (["--strategy", "coop"], "works on the text tower"),
        (["--model", "mini"], "features takes no model, leave --model out"),
        (["--probe", "glyph-letters"], "without a model to score a probe"),
        (["--template", "a {}"], "features come with their text encoded"),
        (["--split", "pyproject.toml"], "this data set does not consist of image files"),
    ],
)
def test_what_features_cannot_do_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    file = write(tmp_path / "f.npz", arrays())
    base = ["--scenario", "features", "--data-dir", str(file), "--output", str(tmp_path / "r")]
    base += [] if "--strategy" in arguments else ["--strategy", "zero-shot"]
    assert main([*base, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert main(["--model", "features", "--output", str(tmp_path / "r")]) == 2
    assert "split-digits takes images, name a model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, "'text' is missing"),
        ({"classnames": np.array(["a"])}, "text has 7 rows, classnames 1 names"),
        ({"train_x": np.zeros((3, 4, 5))}, "train_x must be floating-point"),
        ({"train_x": np.ones((42, 5), int)}, "train_x must be floating-point"),
        ({"test_x": np.ones((35, 4))}, "test_x has 4 columns, text 5"),
        ({"test_x": np.full((35, 5), np.nan)}, "all zero, or a NaN or infinite value"),
        ({"text": np.zeros((7, 5))}, "all zero, or a NaN or infinite value"),
        ({"train_y": np.arange(42)}, "train_y must be from 0 to 6"),
        ({"test_y": np.zeros(35)}, "test_y must be 35 integers"),
        ({"test_y": np.zeros(3, int)}, "test_y must be 35 integers"),
        ({"logit_scale": np.array([1.0, 2.0])}, "logit_scale must be a single number"),
        ({"logit_scale": np.array(-4.6)}, "logit_scale must be a single number"),
        ({"classnames": np.array([{}], dtype=object)}, "cannot be read"),
        ({"classnames": np.array([b"a"] * 7)}, "classnames must be a list of strings"),
        ({"classnames": np.array([["a"]] * 7)}, "classnames must be a list of strings"),
        ({"classnames": np.array("a")}, "classnames must be a list of strings"),
        ({"classnames": np.array(["a\n"] * 7)}, "contains control characters"),
    ],
)
def test_files_that_do_not_fit_are_explained(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    content = {k: v for k, v in (arrays() | change).items() if v is not None}
    with pytest.raises(UserError, match=message):
        read_features(write(tmp_path / "f.npz", content))


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_an_ending_counts_whatever_its_case(tmp_path: Path, ending: str) -> None:
    file = write(tmp_path / f"f.{ending}", arrays())
    digest = read_features(file).sha256
    for changed in (ending.upper(), ending.capitalize()):
        assert read_features(file.rename(tmp_path / f"F.{changed}")).sha256 == digest
        file = tmp_path / f"F.{changed}"


@pytest.mark.parametrize("name", ["f.npz", "f.safetensors"])
@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no archive", b"\xff" * 40])
def test_other_files_are_no_features(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match="cannot be read as"):
        read_features(tmp_path / name)


def test_the_logit_scale_is_taken(tmp_path: Path) -> None:
    content = arrays() | {"logit_scale": np.float32(20)}
    source = read_features(write(tmp_path / "f.npz", content))
    assert source.text is not None
    model = FeatureClassifier(source.text, source.logit_scale)
    model.add_classes(source.class_names)
    assert float(model.logit_scale) == pytest.approx(20)
    with pytest.raises(UserError, match="hold 7 classes, 8 are needed"):
        model.add_classes(["one more"])
    with pytest.raises(UserError, match="no text tower"):
        model.encode_names(["dog"])
