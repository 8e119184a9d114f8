"""Retention has one baseline for every method: zero-shot CLIP with each probe's own templates."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_clipfit import DataRequest, Options
from cl_clipfit.cli.app import main
from cl_clipfit.clip import create_classifier
from cl_clipfit.scenarios import glyph_letters
from cl_clipfit.storage.run_folder import read_result
from tests.support.tiny import PLUGIN, TINY

PROBE = ["--probe", "glyph-letters", "--quiet"]
MINE = """
from cl_clipfit import CLIPStrategy
class Mine(CLIPStrategy):
    learning = "none"
    def probe_features(self, names, templates):
        return super().probe_features(names[::-1], templates)
"""


@pytest.fixture(scope="module")
def baseline() -> float:
    """Return the accuracy of the mini CLIP on the letters, with the letters' templates."""
    source = glyph_letters.load(Options(), DataRequest())
    model = create_classifier("mini")
    model.add_classes(source.class_names, source.templates)
    with torch.no_grad():
        chosen = model(source.test.images).argmax(1)
    return 100 * (chosen == source.test.labels).double().mean().item()


def run(output: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    assert main([*TINY, *PROBE, *arguments, "--output", str(output)]) == 0
    results = [read_result(path) for path in output.glob("*/result.json")]
    return {result["strategy"]: result for result in results if result}


def check(scored: dict[str, Any], baseline: float, rows: int = 3) -> None:
    accuracies = scored["probes"]["glyph-letters"]
    assert len(accuracies) == rows
    assert accuracies[0] == pytest.approx(baseline)
    assert scored["metrics"]["retention"] == pytest.approx(accuracies[-1] - baseline)
    assert scored["metrics"]["probe_accuracy"] == accuracies[-1]


def test_every_method_is_compared_with_zero_shot_clip(
    baseline: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["zero-shot", "linear-head", "clipfit", "coop", "kgcoop"]
    results = run(tmp_path, "--strategy", *names)
    assert set(results) == set(names)
    for result in results.values():
        check(result, baseline)
    assert results["zero-shot"]["metrics"]["retention"] == 0
    assert results["coop"]["metrics"]["retention"] < -5  # the stream's template, not the letters'
    assert f"{baseline:.1f}" in capsys.readouterr().out  # the mean over probes is in the table


def test_other_weights_and_modes_of_a_bank_have_the_same_baseline(
    baseline: float, tmp_path: Path
) -> None:
    result = run(tmp_path, "--strategy", "mergetune:host=coop,landscape=off")["mergetune"]
    for scored in (result, *result["merge"]["compared"].values()):
        check(scored, baseline)
    (folder,) = (path.parent for path in tmp_path.glob("*/result.json"))
    command = ["bank", "eval", str(folder), "--mode", "latest", "oracle", "mean", *PLUGIN]
    assert main(command) == 0
    modes = json.loads((folder / "bank-eval.json").read_text())["modes"]
    assert len(modes) == 3
    for mode in modes:
        check(mode, baseline)
    oracle = next(mode for mode in modes if mode["mode"] == "oracle")
    assert oracle["metrics"]["retention"] == 0  # it leaves the probes to zero-shot CLIP


def test_a_method_that_does_not_learn_may_have_prompts_of_its_own(
    baseline: float, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    command = [*TINY, str(tmp_path / "mine.py"), "--strategy", "mine", *PROBE]
    assert main([*command, "--output", str(tmp_path / "o")]) == 0
    (path,) = (tmp_path / "o").glob("*/result.json")
    result = read_result(path)
    assert result is not None
    check(result, baseline)
    assert result["metrics"]["retention"] < -20  # its names are in the wrong order
