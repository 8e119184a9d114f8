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
JOINT = metrics.JointCurves(
    stream=[None, 60.0, 50.0, 40.0],
    probes={"a": [45.0, 40.0, 30.0, 10.0], "b": [70.0, 70.0, 60.0, 62.0]},
    zero_shot={"a": [45.0, 42.0, 40.0, 38.0], "b": [70.0, 66.0, 64.0, 60.0]},
)
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
    "mtil_average": (90 + 64 + 66 + 80 + 95 + 58 + 85 + 75 + 90) / 9,
    "mtil_last": (85 + 75 + 90) / 3,
    "x_tail_transfer": (40 + (45 + 35) / 2) / 2,
    "x_tail_average": (60 + 40 + 45 + 40 + 55 + 35 + 50 + 25 + 50) / 9,
    "x_tail_last": (50 + 25 + 50) / 3,
    "base": None,
    "novel": None,
    "harmonic_mean": None,
    "probe_accuracy": (40 + 84) / 2,
    "joint_accuracy": 40.0,
    "joint_retention": ((10 - 38) + (62 - 60)) / 2,
}


def test_summary_equals_the_hand_computed_numbers() -> None:
    summary = metrics.summarize(SEEN, ALL, AWARE, SAMPLES, PROBES, JOINT)
    assert summary == pytest.approx(EXPECTED)


def test_curves_equal_the_hand_computed_numbers() -> None:
    curves = metrics.curves(SEEN, ALL, SAMPLES, PROBES, JOINT)
    assert curves["accuracy"][0] is None
    assert curves["accuracy"][1:] == pytest.approx([80.0, 1900 / 30, 50.0])
    assert curves["forgetting"][:2] == [None, None]
    assert curves["forgetting"][2:] == pytest.approx([60 - 40, 20.0])
    assert curves["retention"] == pytest.approx([0.0, -0.5, -0.5, -3.0])
    assert curves["joint_accuracy"] == [None, 60.0, 50.0, 40.0]
    assert curves["joint_retention"] == pytest.approx([0.0, 1.0, -7.0, -13.0])


def test_one_task_leaves_undefined_metrics_null() -> None:
    summary = metrics.summarize([[None], [70.0]], [[10.0], [70.0]], [[10.0], [70.0]], [5], {})
    assert {name for name, value in summary.items() if value is None} == {
        "forgetting", "backward_transfer", "forgetting_all_classes", "forward_transfer", "transfer",
        "retention", "base", "novel", "harmonic_mean", "probe_accuracy", "x_tail_transfer",
        "joint_accuracy", "joint_retention",
    }  # fmt: skip
    assert summary["last_accuracy"] == summary["mtil_average"] == summary["mtil_last"] == 70.0


def test_the_maximum_of_forgetting_excludes_the_row_before_training_and_the_last() -> None:
    rows = [[99.0, 0.0], [50.0, 0.0], [70.0, 0.0]]
    assert functional.forgetting(rows) == -20.0


def test_a_missing_cell_is_an_error_not_a_zero() -> None:
    with pytest.raises(ValueError, match="no accuracy on task 1 after task 1"):
        functional.forgetting([[None, None], [None, None], [50.0, 50.0]])


def test_base_to_novel_trains_one_task_and_tests_two() -> None:
    seen: list[list[float | None]] = [[None, None], [84.0, None]]
    everything, aware = [[40.0, 30.0], [70.0, 20.0]], [[60.0, 75.0], [84.0, 70.0]]
    summary = metrics.summarize(seen, everything, aware, [50, 70], {})
    assert summary == pytest.approx({
        **dict.fromkeys(EXPECTED), "average_accuracy": 84.0, "last_accuracy": 84.0,
        "learning_accuracy": 84.0, "base": 84.0, "novel": 70.0,
        "harmonic_mean": 2 * 84 * 70 / 154, "mtil_average": 77.0, "mtil_last": 77.0,
        "x_tail_average": 45.0, "x_tail_last": 45.0,
    })  # fmt: skip
    curves = metrics.curves(seen, everything, [50, 70], {})
    assert curves == {
        "accuracy": [None, 84.0], "forgetting": [None, None], "retention": [None, None],
        "joint_accuracy": [None, None], "joint_retention": [None, None],
    }  # fmt: skip


def test_base_and_novel_need_one_task_trained_and_two_tested() -> None:
    for table in ([[1.0, 2.0]], [[1.0], [2.0]], [[1.0] * 3] * 2, [[1.0] * 2] * 3):
        assert functional.base_accuracy(table) is None
        assert functional.novel_accuracy(table) is None
    assert functional.harmonic_mean(None, 5.0) is functional.harmonic_mean(5.0, None) is None
    assert functional.harmonic_mean(0.0, 0.0) == 0.0


def test_before_any_training_nothing_is_defined() -> None:
    summary = metrics.summarize([[None, None]], [[1.0, 2.0]], [[3.0, 4.0]], [5, 5], {})
    assert set(summary.values()) == {None}


def test_a_task_without_test_samples_is_left_out_of_every_mean() -> None:
    """Put an empty task between the three: only what it shifts changes, nothing fails."""

    def widen(table: list[list[float | None]]) -> list[list[float | None]]:
        rows = [[row[0], None, *row[1:]] for row in table]
        return [rows[0], rows[1], rows[1], *rows[2:]]  # learning it changes nothing

    summary = metrics.summarize(widen(SEEN), widen(ALL), widen(AWARE), [10, 0, 20, 70], PROBES)
    for name in ("last_accuracy", "learning_accuracy", "forgetting", "backward_transfer",
                 "forgetting_all_classes", "forward_transfer", "mtil_last"):  # fmt: skip
        assert summary[name] == pytest.approx(EXPECTED[name]), name
    assert summary["average_accuracy"] == pytest.approx((80 + 80 + 1900 / 30 + 50) / 4)
    assert summary["transfer"] == pytest.approx((64 + (66 + 66 + 58) / 3) / 2)
    assert summary["mtil_average"] == pytest.approx((2 * 220 + 233 + 250) / 12)
    empty = metrics.summarize([[None], [None]], [[None], [None]], [[None], [None]], [0], {})
    assert set(empty.values()) == {None}


@pytest.mark.parametrize("seed", range(20))
def test_every_metric_agrees_with_numpy(seed: int) -> None:
    """Random tables with tasks that are only tested and tasks without samples (NaN in numpy)."""
    rng = np.random.default_rng(seed)
    trained = int(rng.integers(1, 7))
    columns = trained + int(rng.integers(0, 3))
    samples = rng.integers(1, 50, columns) * (rng.random(columns) < 0.7)
    everything, aware = rng.uniform(0, 100, (2, trained + 1, columns))
    everything[:, samples == 0] = aware[:, samples == 0] = np.nan
    later = np.arange(columns)[None] >= np.arange(trained + 1)[:, None]
    seen = np.where(later, np.nan, rng.uniform(0, 100, later.shape))
    seen[:, samples == 0] = np.nan
    probes = {str(n): rng.uniform(0, 100, trained + 1) for n in range(rng.integers(0, 4))}

    def mean(values: object) -> float | None:
        array = np.asarray(values, dtype=float).flatten()
        return None if np.isnan(array).all() else float(np.nanmean(array))

    def drops(table: np.ndarray) -> list[float]:
        return [table[j + 1 : -1, j].max() - table[-1, j] for j in range(trained - 1)]

    weights = np.where(np.isnan(seen), 0, samples)
    with np.errstate(invalid="ignore"):
        curve = np.nansum(seen * weights, 1) / weights.sum(1)
    diagonal = seen[np.arange(1, trained + 1), np.arange(trained)]
    last = np.array(list(probes.values()))[:, -1] if probes else np.array([])
    first = np.array(list(probes.values()))[:, 0] if probes else np.array([])
    pair = [None if np.isnan(v) else v for v in aware[1]] if (trained, columns) == (1, 2) else None
    both = pair is not None and None not in pair
    expected = {
        "average_accuracy": mean(curve[1:]),
        "last_accuracy": mean(curve[-1:]),
        "learning_accuracy": mean(diagonal),
        "forgetting": mean(drops(seen)),
        "backward_transfer": mean(seen[-1, : trained - 1] - diagonal[:-1]),
        "forgetting_all_classes": mean(drops(everything)),
        "forward_transfer": mean(
            [everything[j, j] - everything[0, j] for j in range(1, trained)]
        ),
        "transfer": mean([aware[1 : j + 1, j].mean() for j in range(1, trained)]),
        "retention": mean(last - first),
        "mtil_average": mean([aware[1:, j].mean() for j in range(columns)]),
        "mtil_last": mean(aware[-1]),
        "x_tail_transfer": mean([everything[1 : j + 1, j].mean() for j in range(1, trained)]),
        "x_tail_average": mean([everything[1:, j].mean() for j in range(columns)]),
        "x_tail_last": mean(everything[-1]),
        "base": pair[0] if pair else None,
        "novel": pair[1] if pair else None,
        "harmonic_mean": float(stats.hmean(np.array(pair, dtype=float))) if both else None,
        "probe_accuracy": mean(last),
    }  # fmt: skip
    tables = [[[None if np.isnan(v) else float(v) for v in row] for row in table]
              for table in (seen, everything, aware)]  # fmt: skip
    found = metrics.summarize(*tables, samples.tolist(), probes)
    expected |= {"joint_accuracy": None, "joint_retention": None}  # not given
    assert found == pytest.approx(expected)


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


@pytest.mark.parametrize("seed", range(5))
def test_domains_share_classes_and_tell_their_samples_apart(seed: int) -> None:
    """Three domains of five classes, the third with one of its own; the second has no samples."""
    rng = np.random.default_rng(seed)
    task_classes = [[3, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4]]
    tasks = rng.permutation([0, 2] * 40)
    labels = np.array([rng.choice(task_classes[t]) for t in tasks])
    scores = rng.normal(size=(80, 5))
    arguments = torch.from_numpy(scores), torch.from_numpy(labels), task_classes
    tables = AccuracyTables([40, 0, 40])
    for _ in range(4):
        tables.append(*arguments, torch.from_numpy(tasks))

    def by_hand(members: np.ndarray, classes: list[int]) -> object:
        best = np.array(classes)[scores[members][:, classes].argmax(1)]
        return pytest.approx(100 * accuracy_score(labels[members], best))

    first, third = tasks == 0, tasks == 2
    four, five = [0, 1, 2, 3], [0, 1, 2, 3, 4]
    assert tables.seen == [
        [None] * 3,
        [by_hand(first, four), None, None],
        [by_hand(first, four), None, None],
        [by_hand(first, five), None, by_hand(third, five)],
    ]
    assert tables.all_classes == [[by_hand(first, five), None, by_hand(third, five)]] * 4
    assert tables.task_aware == [[by_hand(first, four), None, by_hand(third, [1, 2, 3, 4])]] * 4
    everyone = by_hand(tasks >= 0, five)
    curve = seen_curve(*arguments, torch.from_numpy(tasks))
    assert curve == [None, by_hand(first, four), by_hand(first, four), everyone]
    assert functional.last_accuracy(tables.seen, tables.test_samples) == everyone
    assert seen_curve(*arguments[:2], task_classes[:1], torch.from_numpy(tasks)) == curve[:2]
    only_third = [torch.from_numpy(a[third]) for a in (scores, labels, tasks)]
    assert seen_curve(*only_third[:2], task_classes, only_third[2])[:3] == [None] * 3


def test_the_task_of_a_sample_must_be_clear() -> None:
    scores, labels = torch.eye(2), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="share classes"):
        table_rows(scores, labels, [[0, 1], [1]], 1)
    with pytest.raises(ValueError, match="share classes"):
        seen_curve(scores, labels, [[0, 1], [0, 1]])
    with pytest.raises(ValueError, match=r"tasks \(1,\) of samples \(2,\)"):
        AccuracyTables([1, 1]).append(scores, labels, [[0], [1]], torch.tensor([0]))


def test_the_task_by_class_is_the_default() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (100,), generator=generator)
    scores = torch.randn(100, 6, generator=generator)
    groups = [[5, 1], [0], [2, 3, 4]]
    tasks = torch.tensor([1, 0, 2, 2, 2, 0])[labels]
    for t in range(4):
        assert table_rows(scores, labels, groups, t) == table_rows(scores, labels, groups, t, tasks)
    assert seen_curve(scores, labels, groups) == seen_curve(scores, labels, groups, tasks)


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
