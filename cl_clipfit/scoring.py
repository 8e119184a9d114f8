"""One pass over the test images and the probes, and the tables that it fills."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cl_clipfit import metrics
from cl_clipfit.data.source import Source
from cl_clipfit.data.streams import Scenario
from cl_clipfit.metrics.tables import AccuracyTables, accuracy
from cl_clipfit.strategy import CLIPStrategy


@dataclass(frozen=True)
class Scores:
    """What one pass found.

    Attributes:
        test: (N, K) of all test images against all classes.
        probes: accuracy in percent on each probe.
    """

    test: Tensor
    probes: dict[str, float]


def score(
    strategy: CLIPStrategy,
    scenario: Scenario,
    probes: Mapping[str, Source],
    values: Mapping[str, Tensor] | None = None,
) -> Scores:
    """Score the test images and the probes.

    Args:
        strategy: how to classify.
        scenario: the stream.
        probes: data sets scored zero-shot.
        values: values of the selection to use in place of the current ones.
    """
    with strategy.model.weights(values or {}):
        test = strategy.score_all(scenario.test.images)
        return Scores(test, {name: score_probe(strategy, p) for name, p in probes.items()})


def score_probe(strategy: CLIPStrategy, source: Source) -> float:
    """Return the zero-shot accuracy in percent on a probe's test images."""
    scores = strategy.score_probe(source.test.images, source.class_names, source.templates)
    return accuracy(scores, source.test.labels)


@dataclass
class Scoreboard:
    """The tables of one method on one stream: a row before training, one after every task.

    Attributes:
        scenario: the stream.
        tables: accuracy on every task.
        probes: accuracy on every probe.
    """

    scenario: Scenario
    tables: AccuracyTables = field(init=False)
    probes: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tables = AccuracyTables(self.scenario.test_samples)

    def add(self, scores: Scores) -> None:
        """Add a row to every table."""
        scenario = self.scenario
        labels, tasks = scenario.test.labels, scenario.test_tasks
        self.tables.append(scores.test, labels, scenario.task_classes, tasks)
        for name, value in scores.probes.items():
            self.probes.setdefault(name, []).append(value)

    def summary(self) -> dict[str, Any]:
        """Return tables, metrics and curves, as `result.json` holds them."""
        t, samples = self.tables, self.scenario.test_samples
        return {
            "accuracy_matrix": t.seen,
            "all_classes_matrix": t.all_classes,
            "task_aware_matrix": t.task_aware,
            "metrics": metrics.summarize(t.seen, t.all_classes, t.task_aware, samples, self.probes),
            "curves": metrics.curves(t.seen, t.all_classes, samples, self.probes),
            "probes": self.probes,
        }
