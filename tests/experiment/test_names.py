"""Mistakes in names and paths are found before PyTorch is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cl_clipfit.config.command import RunConfig
from cl_clipfit.config.model_names import with_absolute_paths
from cl_clipfit.config.options import Recipe
from cl_clipfit.errors import UserError
from cl_clipfit.experiment.names import architectures, check_names
from cl_clipfit.registry import Kind, Registry

EARLY = """
import json, sys
from cl_clipfit.cli.app import main
codes = [main(command.split()) for command in json.loads(sys.argv[1])]
heavy = {"avalanche", "matplotlib", "open_clip", "sklearn", "torch", "torchvision"} & {*sys.modules}
print(json.dumps([codes, sorted(heavy)]))
"""
MISTAKES = {
    "--strategy clipfitt": "unknown strategy 'clipfitt'. Did you mean 'clipfit'?",
    "--scenario split-digit": "unknown scenario 'split-digit'. Did you mean 'split-digits'?",
    "--probe glyph-leters": "unknown scenario 'glyph-leters'. Did you mean 'glyph-letters'?",
    "--model ViT-B-61:openai": "unknown model architecture 'ViT-B-61'. Did you mean 'ViT-B-16'?",
    "--model vit-b-16:openai": "unknown model architecture 'vit-b-16'. Did you mean 'ViT-B-16'?",
    "--model cl_clipfit/clip": "is a folder: --model local-dir:cl_clipfit/clip",
    "--strategy CLIPFit": "unknown strategy 'CLIPFit'. Did you mean 'clipfit'?",
    "--set clipfit.kdweight=2": "clipfit has no option 'kdweight'. Did you mean 'kd_weight'?",
    "--strategy mergetune:kdweight=2": "nor its host has an option 'kdweight'. Did",
    "--scenario mtil:oder=2": "mtil has no option 'oder'. Did you mean 'order'?",
    "--set split-digits.shots=2": "split-digits has no option 'shots'.",
    "--scenario folder --data-dir nowhere": "--data-dir nowhere: there is no such file or folder",
    "--class-names nowhere.txt": "--class-names nowhere.txt: there is no such file",
    "--split nowhere.json": "--split nowhere.json: there is no such file",
    "--tasks nowhere.yaml": "--tasks nowhere.yaml: expected a number or a YAML file",
    "--epoch 3": "unknown option --epoch: did you mean --epochs?",
}


def test_mistakes_are_answered_before_anything_heavy_is_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EARLY, json.dumps([*MISTAKES])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for line, message in zip(done.stderr.splitlines(), MISTAKES.values(), strict=True):
        assert message in line
    assert json.loads(done.stdout) == [[2] * len(MISTAKES), []]


def test_architectures_are_those_of_open_clip() -> None:
    import open_clip

    assert {*architectures()} == {*open_clip.list_models()} - {"mini"}


@pytest.mark.parametrize("kind", ["strategies", "scenarios"])
def test_no_option_is_refused(kind: Kind) -> None:
    field = {"scenarios": "scenario", "strategies": "strategy"}[kind]
    for entry in Registry().entries(kind):
        label = ",".join(f"{key}=1" for key in entry.options_class().model_fields)
        label = f"{entry.name}:{label}" if label else entry.name
        check_names(RunConfig(**{field: [label] if kind == "strategies" else label}))


def test_right_names_and_keys_pass(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("class MineStrategy: ...\n")
    recipe = [f"clipfit.{key}=1" for key in Recipe.model_fields]
    label = ["mergetune:host=coop,context_tokens=4", "mine:anything=1"]
    for model in ("mini", "ViT-B-32:openai", "hf-hub:some/one", "local-dir:here", "a/b.json:c.pt"):
        check_names(RunConfig(strategy=label, set=recipe, plugin=[plugin], model=model))
    with pytest.raises(UserError, match="an option"):
        check_names(RunConfig(strategy=["mergetune:contexttokens=4"]))


@pytest.mark.parametrize(
    ("model", "absolute"),
    [
        ("mini", "mini"),
        ("mini:w.pt", "mini:{}/w.pt"),
        ("ViT-B-32:openai", "ViT-B-32:openai"),
        ("ViT-B-32:openai:w.pt", "ViT-B-32:openai:{}/w.pt"),
        ("local-dir:./openai", "local-dir:{}/openai"),
        ("w.json:sub/w", "{}/w.json:{}/sub/w"),
        ("hf-hub:timm/none.such", "hf-hub:timm/none.such"),
    ],
)
def test_paths_in_names_of_models_become_absolute(
    model: str, absolute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("w.pt", "w.json", "sub/w", "openai/config.json", "mini.d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert with_absolute_paths(model) == absolute.replace("{}", str(tmp_path))
