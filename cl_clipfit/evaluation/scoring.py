"""One pass over the test images and the probes, and the accuracy tables that it fills."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from cl_clipfit import metrics
from cl_clipfit.clip import CLIPClassifier
from cl_clipfit.data.source import Source
from cl_clipfit.data.streams import Scenario
from cl_clipfit.evaluation.feature_reuse import encodes_as, reads_features, same_images
from cl_clipfit.evaluation.frozen_features import FrozenImages, with_features
from cl_clipfit.metrics.tables import AccuracyTables, accuracy
from cl_clipfit.runtime.out_of_memory import Encoder, encode_images
from cl_clipfit.training.strategy import CLIPStrategy

Values = Mapping[str, Tensor]
_TABLES = ("seen", "all_classes", "task_aware")


@dataclass(frozen=True)
class Scores:
    """The scores of one pass.

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
    values: Values | None = None,
) -> Scores:
    """Score the test images and the probes.

    Args:
        strategy: for scoring.
        scenario: the stream.
        probes: data sets scored zero-shot.
        values: of the selection, to use instead of the current ones.
    """
    with strategy.model.weights(values or {}):
        test = strategy.score_all(scenario.test.images)
        return Scores(test, {name: score_probe(strategy, p) for name, p in probes.items()})


def score_probe(strategy: CLIPStrategy, source: Source) -> float:
    """Return the zero-shot accuracy in percent on a probe's test images."""
    scores = strategy.score_probe(source.test.images, source.class_names, source.templates)
    return accuracy(scores, source.test.labels)


def zero_shot_probe(encoder: Encoder, pretrained: CLIPClassifier, source: Source) -> float:
    """Return the accuracy on a probe of zero-shot CLIP with the probe's own templates.

    It is the baseline of retention for every method, also for one that replaces the templates.
    """
    text = pretrained.encode_names(source.class_names, source.templates)
    scores = encoder.in_batches(
        lambda batch: pretrained.logits(pretrained.image_features(batch), text).cpu(),
        source.test.images,
    )
    return accuracy(scores, source.test.labels)


class Scorer:
    """Scores test images and probes with several sets of weights; equal image towers run once.

    Args:
        strategy: for scoring.
        scenario: the stream.
        probes: data sets scored zero-shot.
        pretrained: the classifier that the strategy's classifier was copied from.
        encoder: provides the features of the pretrained image tower; None if not available.
    """

    def __init__(
        self,
        strategy: CLIPStrategy,
        scenario: Scenario,
        probes: Mapping[str, Source],
        pretrained: CLIPClassifier,
        encoder: FrozenImages | None = None,
    ) -> None:
        self.strategy, self.scenario, self.probes = strategy, scenario, probes
        self.pretrained, self.encoder = pretrained, encoder

    def score(self, weights: Mapping[str, Values]) -> Iterator[tuple[str, Scores]]:
        """Yield names and scores; sets of weights with the same image features are grouped.

        Args:
            weights: by name, values of the selection to use instead of the current ones.
        """
        for names in self._groups(weights):
            scenario, probes = self._encoded(weights[names[0]], len(names))
            for name in names:
                yield name, score(self.strategy, scenario, probes, weights[name])

    @torch.no_grad()
    def before_training(self, values: Values) -> Scores:
        """Return the strategy's scores before training, and those of zero-shot CLIP on the probes.

        Args:
            values: of the selection before training.
        """
        scenario, probes = self._encoded(values, 1)
        test = score(self.strategy, scenario, {}, values).test
        return Scores(
            test, {n: zero_shot_probe(self.strategy, self.pretrained, p) for n, p in probes.items()}
        )

    def _groups(self, weights: Mapping[str, Values]) -> list[list[str]]:
        groups: list[list[str]] = []
        share = reads_features(self.strategy)
        for name, values in weights.items():
            for group in groups if share else ():
                if same_images(self.strategy, values, weights[group[0]]):
                    group.append(name)
                    break
            else:
                groups.append([name])
        return groups

    @torch.no_grad()
    def _encoded(self, values: Values, uses: int) -> tuple[Scenario, Mapping[str, Source]]:
        """Replace images by features if these are shared or available."""
        strategy = self.strategy
        if not reads_features(strategy):
            return self.scenario, self.probes
        with strategy.model.weights(values):
            if self.as_pretrained():
                return self._pretrained_features
            if uses == 1:
                return self.scenario, self.probes
            strategy.model.eval()
            return with_features(self.scenario, self.probes, partial(encode_images, strategy))

    def as_pretrained(self) -> bool:
        """Return whether the encoder's features are now those of the strategy's image tower."""
        return self.encoder is not None and encodes_as(self.strategy.model, self.pretrained)

    def at_hand(self) -> bool:
        """Return whether the current image tower's features of the test images are available."""
        images = self.scenario.test.images
        if images.dim() == 2:
            return True
        usable = reads_features(self.strategy) and self.as_pretrained()
        return usable and self.encoder is not None and self.encoder.known(images) is not None

    @cached_property
    def _pretrained_features(self) -> tuple[Scenario, Mapping[str, Source]]:
        assert self.encoder is not None
        return self.encoder.encode(self.scenario, self.probes, train=False)


@dataclass
class Scoreboard:
    """The tables of one method on one stream: one row before training, one after every task.

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

    def state(self) -> dict[str, Any]:
        """Return the rows of all tables, for a checkpoint."""
        # As tensors: a thousand tasks give a million numbers.
        tables = {
            name: torch.tensor(
                [[math.nan if v is None else v for v in row] for row in getattr(self.tables, name)],
                dtype=torch.float64,
            )
            for name in _TABLES
        }
        return {"tables": tables, "probes": self.probes}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the rows that `state` returned."""
        self.probes = state["probes"]
        for name in _TABLES:
            rows = state["tables"][name].tolist()
            getattr(self.tables, name).extend(
                [None if math.isnan(v) else v for v in row] for row in rows
            )

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
