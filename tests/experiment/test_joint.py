"""Runs of every strategy: joint accuracy against scores put together one by one; loaded again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.faults.job import artefacts
from cl_clipfit import CLIPStrategy, load_run
from cl_clipfit.cli.app import main
from cl_clipfit.experiment.evaluator import Evaluator
from cl_clipfit.methods.closed_form import ClosedFormStrategy
from cl_clipfit.registry import Registry
from tests.support.tiny import TINY, build_source

IMAGES = build_source().test.images
STRATEGIES = [entry.name for entry in Registry().entries("strategies")]
SHORT = {"mergetune": "mergetune:landscape=off,merge_epochs=1"}
# A probe of one name, which is that of a class of the second task.
ONE = """
import torch
from cl_clipfit import ImageSet, Source
PROBES = ()
def load(options, request):
    images = torch.randint(0, 256, (9, 3, 16, 16), generator=torch.Generator().manual_seed(3))
    data = ImageSet(images.to(torch.uint8), torch.zeros(9, dtype=torch.long))
    return Source((" Colour 4",), ("a picture of {}.",), data, data)
"""


def joint_scores(strategy: CLIPStrategy, probes: dict[str, Any], images: Tensor) -> Tensor:
    """Return scores of all classes, then of all names, each from the strategy's public passes."""
    if type(strategy).joint_scores is not CLIPStrategy.joint_scores:  # ranks both together
        text = [strategy.probe_features(p.class_names, p.templates) for p in probes.values()]
        return strategy.joint_scores(images, torch.cat(text))
    names = [strategy.score_probe(images, p.class_names, p.templates) for p in probes.values()]
    if isinstance(strategy, ClosedFormStrategy) and strategy.head and not strategy.compares_text:
        names = [torch.full_like(scores, -torch.inf) for scores in names]
    return torch.cat([strategy.score_all(images), *names], 1)


def joint_row(evaluator: Evaluator, task: int) -> tuple[float | None, dict[str, float]]:
    """Return joint accuracies on the stream and on the probes; names are compared as they are."""
    scorer = evaluator.scorer
    scenario, probes = scorer.scenario, dict(scorer.probes)
    sources = [scenario, *probes.values()]
    names = [name.strip().casefold() for source in sources for name in source.class_names]
    seen = {label for classes in scenario.task_classes[:task] for label in classes}
    unseen = [label for label in range(len(scenario.class_names)) if label not in seen]

    def accuracy(images: Tensor, labels: Tensor, own: Any) -> float:
        scores = joint_scores(scorer.strategy, probes, images)
        scores[:, unseen] = -torch.inf
        right = [
            names[best] == own[label].strip().casefold()
            for best, label in zip(scores.argmax(1).tolist(), labels.tolist(), strict=True)
        ]
        return 100.0 * sum(right) / len(right)

    mask = scenario.test_tasks < task
    stream = accuracy(scenario.test.images[mask], scenario.test.labels[mask], scenario.class_names)
    on_probes = {
        name: accuracy(p.test.images, p.test.labels, p.class_names) for name, p in probes.items()
    }
    return stream, on_probes


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return, by strategy, its result, its folder, and the rows put together beside its run."""
    folder = tmp_path_factory.mktemp("joint")
    (folder / "one.py").write_text(ONE)
    rows: dict[str, list[Any]] = {}
    scores: list[Tensor] = []
    real = Evaluator.evaluate

    def evaluate(self: Evaluator) -> None:
        real(self)
        task = len(self.record.board.tables.seen) - 1
        if task:
            strategy = self.scorer.strategy
            rows.setdefault(type(strategy).__name__, []).append(joint_row(self, task))
            scores[:] = [strategy.score_all(IMAGES)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "evaluate", evaluate)
        results = {}
        for name in STRATEGIES:
            rows.clear()
            command = [*TINY, str(folder / "one.py"), "--strategy", SHORT.get(name, name)]
            probes = ["--probe", "glyph-letters", "one", "--output", str(folder / name)]
            assert main([*command, "--limit", "2", "--lr", "0.01", "--quiet", *probes]) == 0
            (path,) = (folder / name).glob("*/result.json")
            row = next(iter(rows.values()))
            results[name] = json.loads(path.read_text()), path.parent, row, scores[0]
    return results


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_curves_are_those_of_scores_put_together(name: str, runs: dict[str, Any]) -> None:
    result, _, rows, _ = runs[name]
    joint = result["joint"]
    assert joint["stream"] == [None, *(stream for stream, _ in rows)]
    for probe in ("glyph-letters", "one"):
        assert joint["probes"][probe][1:] == [row[probe] for _, row in rows]
    # For every method, the baseline is what zero-shot CLIP does in the same spaces.
    zero_shot = runs["zero-shot"][0]["joint"]
    assert joint["zero_shot"] == zero_shot["probes"] == zero_shot["zero_shot"]
    assert {p: row[0] for p, row in joint["probes"].items()} == {
        p: row[0] for p, row in zero_shot["probes"].items()
    }
    metrics, last = result["metrics"], [row[-1] for row in joint["probes"].values()]
    baseline = [row[-1] for row in zero_shot["probes"].values()]
    assert metrics["joint_accuracy"] == joint["stream"][-1]
    assert metrics["joint_retention"] == pytest.approx((sum(last) - sum(baseline)) / 2)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_loaded_run_scores_as_the_run_itself_did(name: str, runs: dict[str, Any]) -> None:
    _, path, _, scores = runs[name]
    model = load_run(path)
    assert model.class_names == [f"colour {label}" for label in range(6)]
    torch.testing.assert_close(model.strategy.score_all(IMAGES), scores, rtol=1e-4, atol=1e-4)
    best = [labels[0][0] for labels in model.predict(IMAGES)]
    assert best == [f"colour {label}" for label in scores.argmax(1).tolist()]


def test_the_metric_shows_what_retention_does_not(runs: dict[str, Any]) -> None:
    metrics = {name: runs[name][0]["metrics"] for name in STRATEGIES}
    assert metrics["zero-shot"]["joint_retention"] == 0.0
    assert metrics["simplecil"]["retention"] == 0.0  # probes are asked of zero-shot weights
    assert metrics["simplecil"]["joint_retention"] < -10  # a head that has no other names
    joint = runs["simplecil"][0]["joint"]["probes"]
    assert joint["glyph-letters"][1:] == [0.0] * 2
    assert (
        runs["simplecil"][0]["joint"]["stream"][1:]
        == runs["simplecil"][0]["curves"]["accuracy"][1:]
    )


def test_without_probes_there_is_none(tmp_path: Path) -> None:
    assert main([*TINY, "--strategy", "zero-shot", "--quiet", "--output", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*/result.json")
    result = json.loads(path.read_text())
    assert result["joint"] is result["metrics"]["joint_accuracy"] is None
    assert result["metrics"]["joint_retention"] is None
    assert result["curves"]["joint_retention"] == [None] * 3


@pytest.mark.parametrize("method", ["clipfit", SHORT["mergetune"]])
def test_a_resumed_run_has_the_same_numbers(
    method: str, tmp_path: Path, stop_at: Callable[[int], None]
) -> None:
    small = [*TINY, "--tasks", "3", "--batch-size", "4", "--probe", "glyph-letters", "--quiet"]
    command = [*small, "--limit", "4", "--lr", "0.01", "--strategy", method, "--output"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    stop_at(2)
    assert main([*command, str(tmp_path / "broken")]) == 143
    stop_at(0)
    assert main([*command, str(tmp_path / "broken")]) == 0
    whole, broken = (artefacts(tmp_path / name) for name in ("whole", "broken"))
    assert whole == broken
    (path,) = (tmp_path / "broken").glob("*/result.json")
    assert len(json.loads(path.read_text())["joint"]["stream"]) == 4
