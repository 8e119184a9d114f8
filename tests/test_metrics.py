"""Metrics against hand-computed numbers, scikit-learn, and properties."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import accuracy_score

from cl_clipfit import metrics
from cl_clipfit.metrics import functional
from cl_clipfit.metrics.tables import AccuracyTables, accuracy, seen_curve, table_rows
from cl_clipfit.report.tables import confidence_interval

# Three tasks of 10, 20 and 70 test samples; every expected number below was worked out on paper.
SAMPLES = [10, 20, 70]
SEEN = [[None, None, None], [80.0, None, None], [70.0, 60.0, None], [90.0, 30.0, 50.0]]
ALL = [[20.0, 30.0, 40.0], [60.0, 40.0, 45.0], [40.0, 55.0, 35.0], [50.0, 25.0, 50.0]]
AWARE = [[50.0, 60.0, 70.0], [90.0, 64.0, 66.0], [80.0, 95.0, 58.0], [85.0, 75.0, 90.0]]
PROBES = {"a": [50.0, 48.0, 46.0, 40.0], "b": [80.0, 81.0, 83.0, 84.0]}
EXPECTED = {
    "average_accuracy": (80 + (70 * 10 + 60 * 20) / 30 + (900 + 600 + 3500) / 100) / 3,
    "last_accuracy": 50.0,
    "learning_accuracy": (80 + 60 + 50) / 3,
    "forgetting": ((80 - 90) + (60 - 30)) / 2,
    "backward_transfer": ((90 - 80) + (30 - 60)) / 2,
    "forgetting_all_classes": ((60 - 50) + (55 - 25)) / 2,
    "forward_transfer": ((40 - 30) + (35 - 40)) / 2,
    "transfer": (64 + (66 + 58) / 2) / 2,
    "retention": (-10 + 4) / 2,
}


def test_summary_equals_the_hand_computed_numbers() -> None:
    summary = metrics.summarize(SEEN, ALL, AWARE, SAMPLES, PROBES)
    assert summary == pytest.approx(EXPECTED)


def test_curves_equal_the_hand_computed_numbers() -> None:
    curves = metrics.curves(SEEN, ALL, SAMPLES, PROBES)
    assert curves["accuracy"][0] is None
    assert curves["accuracy"][1:] == pytest.approx([80.0, 1900 / 30, 50.0])
    assert curves["forgetting"][:2] == [None, None]
    assert curves["forgetting"][2:] == pytest.approx([60 - 40, 20.0])
    assert curves["retention"] == pytest.approx([0.0, -0.5, -0.5, -3.0])


def test_one_task_leaves_undefined_metrics_null() -> None:
    summary = metrics.summarize([[None], [70.0]], [[10.0], [70.0]], [[10.0], [70.0]], [5], {})
    assert {name for name, value in summary.items() if value is None} == {
        "forgetting", "backward_transfer", "forgetting_all_classes", "forward_transfer", "transfer",
        "retention",
    }  # fmt: skip
    assert summary["last_accuracy"] == 70.0


def test_the_maximum_of_forgetting_excludes_the_row_before_training_and_the_last() -> None:
    rows = [[99.0, 0.0], [50.0, 0.0], [70.0, 0.0]]
    assert functional.forgetting(rows) == -20.0


def test_a_missing_cell_is_an_error_not_a_zero() -> None:
    with pytest.raises(ValueError, match="no accuracy on task 1 after task 1"):
        functional.forgetting([[None, None], [None, None], [50.0, 50.0]])


@pytest.mark.parametrize("seed", range(5))
def test_tables_agree_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, size=4)
    bounds = np.cumsum([0, *sizes])
    task_classes = [list(range(a, b)) for a, b in itertools.pairwise(bounds)]
    labels = np.concatenate([np.arange(bounds[-1]), rng.integers(0, bounds[-1], 200)])
    scores = rng.normal(size=(len(labels), bounds[-1]))
    for seen_tasks in range(5):
        rows = table_rows(
            torch.from_numpy(scores), torch.from_numpy(labels), task_classes, seen_tasks
        )
        for task, classes in enumerate(task_classes):
            own = np.isin(labels, classes)
            full = accuracy_score(labels[own], scores[own].argmax(1))
            narrow = accuracy_score(
                labels[own], np.array(classes)[scores[own][:, classes].argmax(1)]
            )
            seen = scores[own][:, : bounds[seen_tasks]]
            expected = (
                100 * accuracy_score(labels[own], seen.argmax(1)) if task < seen_tasks else None
            )
            assert rows[0][task] == (None if expected is None else pytest.approx(expected))
            assert rows[1][task] == pytest.approx(100 * full)
            assert rows[2][task] == pytest.approx(100 * narrow)


def test_seen_accuracy_is_the_accuracy_over_all_samples_seen() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), [3, 9, 4, 4, 20, 1])
    scores = torch.from_numpy(rng.normal(size=(len(labels), 6)))
    task_classes = [[0, 1], [2, 3], [4, 5]]
    samples = [12, 8, 21]
    tables = AccuracyTables(samples)
    for _ in range(4):
        tables.append(scores, torch.from_numpy(labels), task_classes)
    seen = labels < 4
    expected = 100 * accuracy_score(labels[seen], scores[seen][:, :4].argmax(1))
    assert functional.seen_accuracy(tables.seen, samples, 2) == pytest.approx(expected)


def test_an_untouched_model_forgets_nothing_among_all_classes() -> None:
    torch.manual_seed(0)
    labels = torch.arange(9).repeat(20)
    scores = torch.randn(180, 9)
    tables = AccuracyTables([60, 60, 60])
    for _ in range(4):
        tables.append(scores, labels, [[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    assert functional.forgetting(tables.all_classes) == 0
    assert functional.forward_transfer(tables.all_classes) == 0
    seen_forgetting = functional.forgetting(tables.seen)
    assert seen_forgetting is not None
    assert seen_forgetting > 0  # labels were added: this is why there are two


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="diverged"):
        accuracy(torch.tensor([[float("nan"), 1.0]]), torch.tensor([0]))
    with pytest.raises(ValueError, match="no samples"):
        accuracy(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))


def test_the_zero_shot_curve_is_that_of_an_untouched_model() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (200,), generator=generator)
    scores = torch.randn(200, 6, generator=generator) + torch.eye(6)[labels]
    task_classes = [[0, 1, 2], [3], [4, 5]]
    tables = AccuracyTables([int(torch.isin(labels, torch.tensor(c)).sum()) for c in task_classes])
    for _ in range(4):
        tables.append(scores, labels, task_classes)
    expected = [functional.seen_accuracy(tables.seen, tables.test_samples, t) for t in range(4)]
    assert seen_curve(scores, labels, task_classes) == pytest.approx(expected, nan_ok=True)


def test_the_interval_is_students() -> None:
    values = [71.3, 72.9, 70.2, 74.4, 73.0]
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert confidence_interval(values) == pytest.approx((high - low) / 2)
