"""A file does not tell its activation: where open_clip knows both, that is a warning."""

import json
from pathlib import Path

import open_clip
import pytest
import torch

from cl_clipfit.cli.app import main
from cl_clipfit.clip import create_classifier
from cl_clipfit.clip.loading.names import MINI_FOLDER, Weights, activation_doubt


def quick(architecture: str) -> bool:
    return bool(open_clip.get_model_config(architecture).get("quick_gelu"))


@pytest.mark.parametrize(
    "bare",
    ["RN50", "RN101", "RN50x4", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-bigG-14"],
)
def test_a_file_without_a_tag_is_doubted_in_both_directions(bare: str) -> None:
    twin = f"{bare}-quickgelu"
    text = activation_doubt(bare, Weights("", "folder/w.pt"))
    assert text.startswith(f"{bare}:w.pt: plain GELU is assumed")
    assert f"need {twin}:w.pt" in text and "such as" in text
    text = activation_doubt(twin, Weights("", "folder/w.pt"))
    assert text.startswith(f"{twin}:w.pt: QuickGELU is assumed")
    assert f"need {bare}:w.pt" in text and len(text) < 400
    assert activation_doubt(bare, Weights("openai", "w.pt")) == ""


def test_exactly_the_architectures_with_a_twin_are_doubted() -> None:
    names = open_clip.list_models()
    for name in names:
        bare = name.removesuffix("-quickgelu")
        both = {bare, f"{bare}-quickgelu"} <= set(names)
        assert bool(activation_doubt(name, Weights("", "w.pt"))) == both, name
        trained = {
            open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", quick(name))
            for tag in open_clip.list_pretrained_tags_by_model(name)
        }
        assert both or trained <= {quick(name)}, f"{name} has tags of both, and no twin"


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Register `pair` and `pair-quickgelu`, and return a file of weights of either."""
    for name in ("_MODEL_CONFIGS", "_MODEL_CONFIG_PATHS"):
        monkeypatch.setattr(f"open_clip.factory.{name}", getattr(open_clip.factory, name).copy())
    config = {**json.loads((MINI_FOLDER / "mini.json").read_text()), "embed_dim": 32}
    for name, more in (("pair", {}), ("pair-quickgelu", {"quick_gelu": True})):
        (tmp_path / f"{name}.json").write_text(json.dumps({**config, **more}))
        open_clip.add_model_config(tmp_path / f"{name}.json")
    monkeypatch.setattr("cl_clipfit.experiment.names.architectures", open_clip.list_models)
    torch.save(open_clip.create_model("pair").state_dict(), tmp_path / "w.pt")
    return tmp_path / "w.pt"


@pytest.mark.parametrize("name", ["pair", "pair-quickgelu"])
def test_a_doubt_is_shown_and_kept_in_the_result(
    name: str, pair: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(pair.parent / "runs")]
    command = ["--scenario", "split-digits", "--strategy", "zero-shot", "--limit", "4"]
    assert main([*command, "--probe", "--model", f"{name}:{pair}", *output]) == 0
    printed = " ".join("".join(capsys.readouterr()).split())
    assert printed.count(f"{name}:w.pt:") == 1 and "is assumed" in printed
    (file,) = (pair.parent / "runs").glob("*/result.json")
    (text,) = json.loads(file.read_text())["warnings"]
    assert text.startswith(f"{name}:w.pt: ") and str(pair.parent) not in text


def test_code_of_ones_own_is_warned_too(pair: Path) -> None:
    with pytest.warns(UserWarning, match="plain GELU is assumed"):
        assert len(create_classifier(f"pair:{pair}").warnings) == 1


def test_resized_positions_are_a_warning(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for size, context in ((256, 77), (224, 50), (256, 50), (224, 77)):
        other = open_clip.create_model(
            "ViT-S-32-alt", force_image_size=size, force_context_length=context
        )
        torch.save(other.state_dict(), tmp_path / "w.pt")
        texts = create_classifier(f"ViT-S-32-alt:{tmp_path / 'w.pt'}").warnings
        assert any("visual.positional_embedding was resized" in t for t in texts) == (size == 256)
        assert any(t.startswith("w.pt: positional") for t in texts) == (context == 50)
