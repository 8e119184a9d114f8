"""Metrics of single answers, against numbers worked out by hand and scikit-learn's."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from cl_clipfit.metrics.predictions import Predictions
from cl_clipfit.registry import Registry

REGISTRY = Registry()
NAMES = [entry.name for entry in REGISTRY.entries("metrics")]
EMPTY = Predictions(
    np.zeros(0, np.int32), np.zeros((0, 5), np.int32), np.zeros((0, 5), np.float16),
    np.zeros(0, np.int32),
)  # fmt: skip


def measure(name: str, *rows: Predictions) -> Any:
    return REGISTRY.get("metrics", name).metric_function()(rows, {})


def answers(labels: list[int], chosen: list[int], scores: list[float], tasks: Any = 0) -> Any:
    """Return predictions whose further classes are those after the chosen one."""
    top = np.array(chosen, np.int32)[:, None] + np.arange(5, dtype=np.int32)
    every = np.zeros((len(labels), 5), np.float16)
    every[:, 0] = scores
    of_task = np.broadcast_to(np.array(tasks, np.int32), len(labels))
    return Predictions(np.array(labels, np.int32), top, every, of_task)


def test_all_of_them_are_known() -> None:
    assert NAMES == ["calibration-error", "macro-f1", "top-5", "worst-class"]
    for entry in REGISTRY.entries("metrics"):
        assert entry.summary
        assert not entry.error


def test_the_numbers_are_those_worked_out_by_hand() -> None:
    kept = answers([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 0], [0.5, 0.75, 0.75, 1.0, 1.0, 0.25])
    before = answers([0] * 6, [5] * 6, [1.0] * 6)
    assert measure("worst-class", before, kept) == 0  # class 2
    assert measure("top-5", before, kept) == pytest.approx(100 * 5 / 6)  # not 0 after 1, 2, 3, ...
    # Bins: 0.25 right 0 of 1; 0.5 right 1 of 1; 0.75 right 1 of 2; 1.0 right 2 of 2.
    expected = (0.25 + 0.5 + abs(1 - 1.5) + 0) / 6
    assert measure("calibration-error", before, kept) == pytest.approx(100 * expected)
    f1 = (2 / 3 + 4 / 5 + 0) / 3  # class 0: P 2/3, R 2/3; class 1: P 2/3, R 1
    assert measure("macro-f1", before, kept) == pytest.approx(100 * f1)


def test_they_are_those_of_scikit_learn_on_the_tasks_learned() -> None:
    draw = np.random.default_rng(0)
    labels, tasks = draw.integers(0, 7, 400), draw.integers(0, 3, 400)
    kept = answers([*labels], [*draw.integers(0, 7, 400)], [*draw.random(400)], tasks)
    seen = tasks < 2  # two rows after row 0
    rows = kept, kept, kept
    truth, chosen = labels[seen], kept.top[seen, 0]
    macro = f1_score(truth, chosen, average="macro")
    assert measure("macro-f1", *rows) == pytest.approx(100 * macro)
    worst = min(accuracy_score(truth[truth == c], chosen[truth == c]) for c in range(7))
    assert measure("worst-class", *rows) == pytest.approx(100 * worst)
    confidence, right = kept.scores[seen, 0].astype(float), truth == chosen
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert measure("calibration-error", *rows) == pytest.approx(100 * error)


@pytest.mark.parametrize("name", NAMES)
def test_of_no_images_there_is_no_number(name: str) -> None:
    assert measure(name, EMPTY, EMPTY) is None
