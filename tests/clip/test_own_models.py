"""Architectures of one's own: a folder, or a configuration and its weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
from torch import Tensor

from cl_clipfit.cli.app import main
from cl_clipfit.clip import check_model, create_classifier
from cl_clipfit.clip.loading.factory import hash_weights
from cl_clipfit.clip.loading.names import MINI_FOLDER
from cl_clipfit.errors import UserError

RAW = json.loads((MINI_FOLDER / "mini.json").read_text())
PREPROCESSING = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "resize_mode": "squash",
                 "interpolation": "bilinear", "fill_color": 7}  # fmt: skip
HUB = {"model_cfg": RAW, "preprocess_cfg": {**PREPROCESSING, "mode": "RGB", "size": 999}}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Return weights that are not those of the bundled model."""
    torch.manual_seed(1)
    create_classifier("mini")  # registers it
    return open_clip.create_model("mini").state_dict()


def write(folder: Path, config: Any, name: str, weights: str, state: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(config))
    save = safetensors.torch.save_file if weights.lower().endswith("rs") else torch.save
    save(state, folder / weights)
    return folder


@pytest.mark.parametrize("weights", ["w.pt", "W.PTH", "pytorch_model.bin", "x.SAFETENSORS"])
@pytest.mark.parametrize("config", [RAW, HUB], ids=["raw", "hub"])
def test_both_forms_of_a_configuration_load_with_all_endings(
    config: dict[str, Any], weights: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    folder = write(tmp_path / "tuned", config, "open_clip_config.json", weights, state)
    write(tmp_path, config, "Mine.JSON", "w", state)
    names = (f"local-dir:{folder}", f"{tmp_path}/Mine.JSON:{folder}/{weights}")
    for name, label in zip(names, ("tuned", "Mine"), strict=True):
        check_model(name)
        model = create_classifier(name)
        assert model.identity is not None
        assert (model.identity.architecture, model.identity.pretrained) == (label, weights)
        loaded = model.clip.state_dict()
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())
        assert model.preprocess.size == (32, 32)
        if config is HUB:
            assert model.preprocess.mean == (0.1, 0.2, 0.3)
            assert model.preprocess.resize_mode == "squash"
            assert model.preprocess.interpolation == "bilinear" and not model.warnings
        else:
            assert model.preprocess.mean == open_clip.OPENAI_DATASET_MEAN
            assert "has no preprocess_cfg" in model.warnings[0]


def test_a_folder_is_loaded_as_open_clip_loads_it(state: dict[str, Tensor], tmp_path: Path) -> None:
    folder = write(tmp_path, HUB, "open_clip_config.json", "open_clip_model.safetensors", state)
    safetensors.torch.save_file(
        {n: v + 1 for n, v in state.items()}, folder / "a-first.safetensors"
    )  # which the usual name precedes
    clip = open_clip.create_model(f"local-dir:{folder}")
    model = create_classifier(f"local-dir:{folder}")
    assert hash_weights(model.clip) == hash_weights(clip)
    expected = dict(clip.visual.preprocess_cfg)
    for key in ("mean", "std"):
        assert list(getattr(model.preprocess, key)) == list(expected[key])
    assert (model.preprocess.size, model.preprocess.fill_color) == ((32, 32), 7)


def test_an_architecture_that_open_clip_does_not_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another width, depth and activation, of the name of an architecture it does list."""
    raw = json.loads(json.dumps(RAW))
    raw["vision_cfg"] |= {"width": 64, "layers": 1, "head_width": 32}
    raw |= {"quick_gelu": True}
    for name in ("_MODEL_CONFIGS", "_MODEL_CONFIG_PATHS"):
        monkeypatch.setattr(f"open_clip.factory.{name}", getattr(open_clip.factory, name).copy())
    open_clip.add_model_config(write(tmp_path, raw, "odd.json", "w.pt", {}) / "odd.json")
    clip = open_clip.create_model("odd").eval()
    write(tmp_path, raw, "ViT-B-32.json", "w.pt", clip.state_dict())
    model = create_classifier(f"{tmp_path}/ViT-B-32.json:{tmp_path}/w.pt")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = clip.encode_image(images, normalize=True)
        torch.testing.assert_close(model.image_features(images), expected, atol=1e-5, rtol=1e-5)
    assert open_clip.get_model_config("ViT-B-32")["vision_cfg"]["width"] == 768


def test_a_run_is_called_after_its_folder(
    state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "my-clip", HUB, "open_clip_config.json", "w.pt", state)
    command = ["--scenario", "split-digits", "--strategy", "zero-shot", "--limit", "4", "--probe"]
    output = ["--output", str(tmp_path / "runs")]
    assert main([*command, "--model", f"local-dir:{tmp_path}/my-clip", *output]) == 0
    (file,) = (tmp_path / "runs").glob("*/result.json")
    result = json.loads(file.read_text())
    model = result["model"]
    assert (model["architecture"], model["pretrained"]) == ("my-clip", "w.pt")
    assert result["warnings"] == []


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "mean is a number": ({"mean": 0.5}, "mean"),
    "mean is a text": ({"mean": ["a", "b", "c"]}, "mean"),
    "mean of numbers as texts": ({"mean": ["0.5", "0.5", "0.5"]}, "mean"),
    "mean of two": ({"mean": [0.5, 0.5]}, "mean"),
    "mean is NaN": ({"mean": [float("nan"), 0, 0]}, "mean"),
    "std is zero": ({"std": [0.5, 0, 0.5]}, "std"),
    "std is infinite": ({"std": [float("inf"), 1, 1]}, "std"),
    "interpolation is a number": ({"interpolation": 3}, "interpolation"),
    "interpolation is unknown": ({"interpolation": "nearest"}, "interpolation"),
    "resize_mode is unknown": ({"resize_mode": ["squash"]}, "resize_mode"),
    "fill_color is a triple": ({"fill_color": [0, 0, 0]}, "fill_color"),
    "fill_color is a flag": ({"fill_color": True}, "fill_color"),
    "mode is grey": ({"mode": "L"}, "mode"),
}


@pytest.mark.parametrize("what", [*WRONG, "a list"])
def test_preprocessing_of_a_wrong_type_is_one_line(
    what: str, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, key = WRONG.get(what, ([1], "preprocess_cfg"))
    config = {**HUB, "preprocess_cfg": change}
    folder = write(tmp_path, config, "open_clip_config.json", "open_clip_model.safetensors", state)

    def fetch(name: str, filename: str = "", **options: Any) -> str:
        return str(folder / (filename or "open_clip_model.safetensors"))

    monkeypatch.setattr("open_clip.pretrained.download_pretrained_from_hf", fetch)
    for name in (f"local-dir:{folder}", f"{folder}/open_clip_config.json:{folder}/open_clip_model"
                 ".safetensors", "hf-hub:any/model"):  # fmt: skip
        with pytest.raises(UserError, match=f"open_clip_config.json: preprocess_cfg: .*{key}" if
                           what != "a list" else "preprocess_cfg: ") as caught:  # fmt: skip
            create_classifier(name)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_cfg": 3}, "no 'text_cfg'"),
        ({"embed_dim": "128"}, "not a model configuration"),
        ({"vision_cfg": None}, "no 'vision_cfg'"),
        (
            {"vision_cfg": {**RAW["vision_cfg"], "colour": 1}},
            "unexpected keyword argument 'colour'",
        ),
        ({"vision_cfg": {**RAW["vision_cfg"], "image_size": [32]}}, "cannot load"),
        ({"vision_cfg": {**RAW["vision_cfg"], "image_size": "32"}}, "not a model configuration"),
        ({"text_cfg": {**RAW["text_cfg"], "tokenizer_kwargs": 3}}, "tokenizer"),
        ({"embed_dim": 64}, "has shape"),
    ],
)
def test_a_configuration_of_wrong_types_is_one_line(
    change: dict[str, Any], message: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    for config in ({**RAW, **change}, {**HUB, "model_cfg": {**RAW, **change}}):
        write(tmp_path, config, "mine.json", "w.pt", state)
        with pytest.raises(UserError, match=message) as caught:
            create_classifier(f"{tmp_path}/mine.json:{tmp_path}/w.pt")
        assert "\n" not in str(caught.value)


Change = Callable[[Path], object]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("local-dir:{}/absent", lambda folder: None, "there is no such folder"),
        ("local-dir:{}/w.pt", lambda folder: None, "there is no such folder"),
        (
            "local-dir:{}",
            lambda folder: (folder / "mine.json").unlink(),
            "no open_clip_config.json",
        ),
        ("local-dir:{}", lambda folder: (folder / "w.pt").unlink(), "holds no weights"),
        (
            "local-dir:{}",
            lambda folder: (folder / "other.json").touch(),
            "no open_clip_config.json",
        ),
        (
            "local-dir:{}",
            lambda folder: shutil.copy(folder / "w.pt", folder / "v.bin"),
            r"weights v\.bin, w\.pt: choose one, --model .*mine\.json:FILE",
        ),
        ("{}/mine.json", lambda folder: None, "needs weights: .*mine.json:FILE"),
        ("{}/mine.json:{}/absent.pt", lambda folder: None, r"absent\.pt does not exist"),
        ("{}/absent.json:{}/w.pt", lambda folder: None, r"absent\.json does not exist"),
        ("{}/mine.json:{}/w.pt", lambda folder: (folder / "mine.json").write_text("{"), "not a mo"),
        ("{}/mine.json:{}/w.pt", lambda folder: (folder / "mine.json").write_text("[]"), "not a m"),
    ],
)
def test_missing_and_doubtful_files_are_said_before_data_are_read(
    name: str, change: Change, message: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    write(tmp_path, RAW, "mine.json", "w.pt", state)
    check_model(f"local-dir:{tmp_path}")
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        check_model(name.replace("{}", str(tmp_path)))


@pytest.mark.parametrize("local", [True, False])
def test_a_tokenizer_comes_from_the_folder_or_by_its_name(
    local: bool, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources: list[str] = []
    monkeypatch.setattr(
        "open_clip.factory.HFTokenizer", lambda source, **_: sources.append(str(source))
    )
    text = {**RAW["text_cfg"], "hf_tokenizer_name": "org/tokenizer"}
    write(tmp_path, {**RAW, "text_cfg": text}, "mine.json", "w.pt", state)
    named = f"{tmp_path}/mine.json:{tmp_path}/w.pt"
    create_classifier(f"local-dir:{tmp_path}" if local else named)
    assert sources == [str(tmp_path) if local else "org/tokenizer"]
