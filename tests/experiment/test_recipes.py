"""Recipes that follow the data: epochs by the number of images, and a word if they do not suit."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_clipfit import RunConfig
from cl_clipfit.cli.app import main
from cl_clipfit.experiment.identity import config_of
from cl_clipfit.experiment.prepare import prepare
from cl_clipfit.metrics.functional import learning_accuracy
from cl_clipfit.metrics.tables import AccuracyTables, learning_row
from cl_clipfit.registry import Registry
from cl_clipfit.runtime.progress import Progress

# Four classes in two tasks, without a recipe: `count` images per class.
PLAIN = """
import torch
from cl_clipfit import ImageSet, Source
MODEL = "mini"
PROBES = ()
TASKS = 2
def load(options, request):
    data = ImageSet(
        torch.zeros(4 * {count}, 3, 8, 8, dtype=torch.uint8), torch.arange(4).repeat({count})
    )
    return Source(("a", "b", "c", "d"), ("{{}}",), data, data)
"""


def planned(folder: Path, count: int, **more: Any) -> Any:
    file = folder / "plain.py"
    file.write_text(PLAIN.format(count=count))
    settings = {"scenario": "plain", "plugin": [file], "strategy": ["clipfit"], **more}
    prepared = prepare(RunConfig(**settings), Progress())
    return prepared, prepared.plans[0]


@pytest.mark.parametrize(
    ("count", "more", "epochs"),
    [
        (8, {}, 20),  # one step per epoch: at most 20
        (160, {}, 10),  # 320 images, 10 steps per epoch
        (160, {"batch_size": 16}, 5),
        (2000, {}, 3),  # 125 steps per epoch
        (2000, {"shots": 160}, 10),
        (320, {"validation": 0.5}, 10),
        (2000, {"epochs": 7}, 7),
        (2000, {"set": ["clipfit.epochs=8"]}, 8),
        (2000, {"strategy": ["clipfit:epochs=9"]}, 9),
        (8, {"online": 4}, 1),
        (8, {"strategy": ["clipfit"], "recipe": "published"}, 100),
    ],
)
def test_epochs_follow_the_images_unless_they_are_set(
    count: int, more: dict[str, Any], epochs: int, tmp_path: Path
) -> None:
    prepared, plan = planned(tmp_path, count, **more)
    assert plan.recipe.epochs == epochs
    assert config_of(prepared.stream, plan, prepared.command)["epochs"] == epochs


@pytest.mark.parametrize("name", ["mergetune", "stack"])
def test_a_method_that_builds_on_another_has_its_epochs(name: str, tmp_path: Path) -> None:
    _, plan = planned(tmp_path, 160, strategy=[name])
    assert plan.recipe.epochs == plan.base.recipe.epochs == 10


def test_full_means_the_same_on_every_stream(tmp_path: Path) -> None:
    rates = {
        prepare(RunConfig(scenario=stream, strategy=["full"]), Progress()).plans[0].recipe.lr
        for stream in ("split-digits", "split-shapes100")
    }
    _, plan = planned(tmp_path, 8, strategy=["full"])
    assert rates == {plan.recipe.lr} == {1e-4}


def test_the_baseline_of_learning_is_that_of_tables_of_a_model_that_does_not_change() -> None:
    draw = torch.Generator().manual_seed(1)
    scores, labels = torch.randn(40, 6, generator=draw), torch.arange(6).repeat(7)[:40]
    classes = [[0, 1, 2], [3], [4, 5]]
    tables = AccuracyTables([20, 7, 13])
    for _ in range(4):
        tables.append(scores, labels, classes)
    row = learning_row(scores, labels, classes)
    assert row == [tables.seen[t + 1][t] for t in range(3)]
    assert sum(v for v in row if v is not None) / 3 == learning_accuracy(tables.seen)


@pytest.mark.parametrize(
    ("strategy", "warned"), [("full:lr=0.05", True), ("full:lr=1e-9", False), ("lda", False)]
)
def test_a_run_that_learns_less_than_zero_shot_says_so(
    strategy: str, warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--scenario", "split-digits", "--tasks", "2", "--limit", "4", "--epochs", "1"]
    assert main([*few, "--strategy", strategy, "--output", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*/result.json")
    result = json.loads(file.read_text())
    texts = [text for text in result["warnings"] if "of zero-shot CLIP" in text]
    assert bool(texts) == warned == ("below the" in capsys.readouterr().err)
    if warned:
        found = re.search(r"learning accuracy ([\d.]+) is below the ([\d.]+)", texts[0])
        assert found and float(found[1]) < float(found[2])
        assert found[1] == f"{result['metrics']['learning_accuracy']:.1f}"


@pytest.mark.parametrize("stream", ["folder", "split-digits", "features"])
def test_info_shows_the_recipe_of_every_method(
    stream: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", stream]) == 0
    shown = capsys.readouterr().out.split("recipes on ")[1]
    registry = Registry()
    rows = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    for entry in registry.entries("strategies"):
        cls = registry.strategy_class(entry.name)
        trains = cls.learning == "gradient" and not cls.base_option
        assert (entry.name in rows) == (trains and not (stream == "features" and cls.towers))
    assert "0.003" in rows["linear-head"] if stream == "split-digits" else "0.0003" in shown
    assert ("about 100 steps" in rows["linear-head"]) == (stream != "split-digits")
