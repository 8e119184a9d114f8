"""`export`: every form is read by its own library, and gives the scores of the run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from cl_clipfit import create_classifier, load_run
from cl_clipfit.cli.app import main
from cl_clipfit.clip import onnx_file
from cl_clipfit.clip.loading.licences import licence_of
from cl_clipfit.commands import export
from cl_clipfit.errors import UserError
from cl_clipfit.experiment.load import LoadedRun
from tests.support.tiny import PLUGIN, TINY, build_source

QUICK = [*TINY, "--epochs", "1", "--lr", "0.01", "--quiet", "--output"]
IMAGES = build_source().test.images
NAMES = [f"colour {label}" for label in range(6)]
TEMPLATES = ["a photo of a {}.", "a drawing of a {}."]


def train(folder: Path, strategy: str) -> Path:
    command = [*QUICK, str(folder), "--strategy", strategy, "--template", *TEMPLATES]
    assert main(command) == 0
    return next(folder.glob("*/result.json")).parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("share"), "clipfit")


@pytest.fixture(scope="module")
def model(run: Path) -> LoadedRun:
    return load_run(run)


def exported(run: Path, *arguments: str | Path) -> None:
    assert main(["export", str(run), *map(str, arguments), *PLUGIN]) == 0


def logits(clip: Any, tokenizer: Any, pixels: Tensor) -> Tensor:
    """Return what a user of open_clip computes."""
    with torch.no_grad():
        groups = [tokenizer([t.format(name) for t in TEMPLATES]) for name in NAMES]
        text = [clip.encode_text(g, normalize=True).mean(0) for g in groups]
        image = clip.encode_image(pixels, normalize=True)
        matrix = torch.nn.functional.normalize(torch.stack(text), dim=-1)
        return clip.logit_scale.exp() * image @ matrix.T


def expected(model: LoadedRun) -> Tensor:
    return model.strategy.score_all(IMAGES)


def test_a_folder_is_what_open_clip_reads(run: Path, model: LoadedRun, tmp_path: Path) -> None:
    folder = tmp_path / "plants"
    exported(run, folder)
    assert {file.name for file in folder.iterdir()} == {
        "open_clip_config.json", "open_clip_model.safetensors", "README.md",
    }  # fmt: skip
    clip, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    pixels = model.strategy.model.preprocess(IMAGES)
    torch.testing.assert_close(
        logits(clip.eval(), tokenizer, pixels), expected(model), rtol=0, atol=1e-4
    )
    assert preprocess is not None
    config = json.loads((folder / "open_clip_config.json").read_text())
    assert config["cl_clipfit"]["class_names"] == NAMES
    assert config["cl_clipfit"]["templates"] == TEMPLATES
    card = (folder / "README.md").read_text()
    average = model.result["metrics"]["average_accuracy"]
    assert f"| average accuracy, % | {average:.1f} |" in card
    assert "license: mit" in card
    assert "| 2 | colour 3, colour 4, colour 5 | 24 | 24 |" in card
    again = create_classifier(f"local-dir:{folder}")  # our own loader, which trusts no file
    again.add_classes(NAMES, TEMPLATES)
    torch.testing.assert_close(again(IMAGES), expected(model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_checkpoint_is_what_open_clip_reads(
    ending: str, run: Path, model: LoadedRun, tmp_path: Path
) -> None:
    file = tmp_path / f"plants.{ending}"
    exported(run, file)
    clip = open_clip.create_model("mini", pretrained=str(file)).eval()
    pixels = model.strategy.model.preprocess(IMAGES)
    found = logits(clip, open_clip.get_tokenizer("mini"), pixels)
    torch.testing.assert_close(found, expected(model), rtol=0, atol=1e-4)
    if ending == "pt":
        content = torch.load(file, weights_only=True)
        assert (content["class_names"], content["templates"]) == (NAMES, TEMPLATES)
    else:
        with safe_open(file, "pt") as opened:
            assert json.loads(opened.metadata()["class_names"]) == NAMES
            assert json.loads(opened.metadata()["templates"]) == TEMPLATES
    assert create_classifier(f"mini:{file}").identity is not None


def test_a_graph_gives_the_same_logits_in_onnxruntime(
    run: Path, model: LoadedRun, tmp_path: Path
) -> None:
    try:
        onnx_file.check_onnx()
    except UserError as error:
        pytest.skip(str(error))
    import onnxruntime

    file = tmp_path / "plants.onnx"
    exported(run, file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    pixels = model.strategy.model.preprocess(IMAGES)
    (found,) = session.run(["logits"], {"pixels": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected(model), rtol=0, atol=1e-4)
    about = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    assert (about["class_names"], about["templates"]) == (NAMES, TEMPLATES)
    fit = model.strategy.model.preprocess
    assert about["preprocessing"]["size"] == list(fit.size)
    assert about["preprocessing"]["mean"] == list(fit.mean)


def test_what_a_form_cannot_hold_is_said_in_a_line(
    run: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, prompts = (train(tmp_path / name, name) for name in ("lda", "coop"))
    out = tmp_path / "x.pt"
    says = refused("export", head, out, *PLUGIN)
    assert "lda does not classify by image and text features alone" in says
    assert "'context', which is not part of" in refused("export", prompts, out, *PLUGIN)
    monkeypatch.setattr(torch, "__version__", "2.6.0")
    monkeypatch.setattr(onnx_file, "_PACKAGES", ("json",))
    assert "works from 2.14" in refused("export", run, tmp_path / "x.onnx", *PLUGIN)
    monkeypatch.setattr(onnx_file, "_PACKAGES", ("json", "no_such_package"))
    assert "ONNX needs no_such_package" in refused("export", run, tmp_path / "x.onnx", *PLUGIN)
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    assert "differ from the run's by" in refused("export", run, out, *PLUGIN)
    assert {path.name for path in tmp_path.iterdir()} == {"lda", "coop"}


def test_wrong_requests_are_refused(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "mine.pt").write_text("precious")
    for arguments, says in {
        ("--to", "tflite"): "there is no such form",
        (): "name a file or folder, or --to",
        (tmp_path / "x.bin",): "must end in",
        (tmp_path / "x.pt", "--to", "onnx"): "must end in .onnx",
        (tmp_path / "mine.pt",): "--force replaces it",
        (tmp_path,): "holds other files",
    }.items():
        assert says in refused("export", run, *arguments, *PLUGIN)
    assert (tmp_path / "mine.pt").read_text() == "precious"


def test_licences_of_weights_are_those_of_their_publishers() -> None:
    assert licence_of("mini") == licence_of("ViT-B-32:laion2b_s34b_b79k") == "MIT"
    assert licence_of("ViT-B-32-quickgelu:metaclip_400m") == "CC-BY-NC-4.0"
    assert licence_of("ViT-B-16-SigLIP:webli") == "Apache-2.0"
    assert licence_of("ViT-B-16:mine.pt") == licence_of("mini:mine.pt") == "other"
