"""One pass over the test images and the probes."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from cl_clipfit.clip import CLIPClassifier
from cl_clipfit.data.source import Source
from cl_clipfit.data.streams import Scenario
from cl_clipfit.evaluation.feature_reuse import (
    encodes_as,
    reads_features,
    same_images,
    scores_as_zero_shot,
    scores_in_batches,
)
from cl_clipfit.evaluation.frozen_features import FrozenImages, encoded_probes, with_features
from cl_clipfit.evaluation.joint_scoring import JointScorer
from cl_clipfit.evaluation.scoreboard import Scores
from cl_clipfit.metrics.tables import accuracy
from cl_clipfit.runtime.out_of_memory import encode_images
from cl_clipfit.training.strategy import CLIPStrategy

Values = Mapping[str, Tensor]


def score(
    strategy: CLIPStrategy,
    scenario: Scenario,
    probes: Mapping[str, Source],
    values: Values | None = None,
    tasks: Sequence[int] = (),
) -> Scores:
    """Score the test images and the probes.

    Args:
        strategy: for scoring.
        scenario: the stream.
        probes: data sets scored zero-shot.
        values: of the selection, to use instead of the current ones.
        tasks: numbers of tasks seen, ascending, whose joint label spaces are scored too.
    """
    with strategy.model.weights(values or {}):
        if probes and tasks and scores_in_batches(strategy):
            return _score_jointly(strategy, JointScorer(strategy, scenario, probes, tasks))
        test = strategy.score_all(scenario.test.images)
        return Scores(test, {name: _score_probe(strategy, p) for name, p in probes.items()})


def _score_probe(strategy: CLIPStrategy, source: Source) -> float:
    """Return the zero-shot accuracy in percent on a probe's test images."""
    scores = strategy.score_probe(source.test.images, source.class_names, source.templates)
    return accuracy(scores, source.test.labels)


@torch.no_grad()
def _score_jointly(strategy: CLIPStrategy, scorer: JointScorer) -> Scores:
    model, probes = strategy.model.eval(), scorer.probes
    text = {n: strategy.probe_features(p.class_names, p.templates) for n, p in probes.items()}
    with model.cached_text():
        test, stream = scorer.score_test(torch.cat([*text.values()]))
        encode, join = strategy.name_features, strategy.joint_scores
        accuracies, joint = scorer.score_probes(model, text, encode, join)
    return Scores(test, accuracies, scorer.rows(stream, joint))


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

    def score(
        self, weights: Mapping[str, Values], tasks: Sequence[int] = ()
    ) -> Iterator[tuple[str, Scores]]:
        """Yield names and scores; sets of weights with the same image features are grouped.

        Args:
            weights: by name, values of the selection to use instead of the current ones.
            tasks: as in `score`.
        """
        for names in self._groups(weights):
            scenario, probes = self._encoded(weights[names[0]], len(names))
            for name in names:
                yield name, score(self.strategy, scenario, probes, weights[name], tasks)

    @torch.no_grad()
    def before_training(self, values: Values) -> Scores:
        """Return the strategy's scores before training, and those of zero-shot CLIP on the probes.

        The latter use each probe's own templates: they are the baseline of retention for every
        method, also for one that replaces the templates. In the joint label space they are scored
        for any number of tasks seen; the stream only if the strategy does not learn.

        Args:
            values: of the selection before training.
        """
        strategy, pretrained = self.strategy, self.pretrained
        scenario, probes = self._encoded(values, 1)
        if not probes:
            return score(strategy, scenario, {}, values)
        if self.encoder is not None:  # the strategy may not read features, zero-shot CLIP does
            probes = encoded_probes(probes, self.encoder.features)
        tasks = range(scenario.trained_tasks + 1)
        scorer = JointScorer(strategy, scenario, probes, tasks)
        text = {n: pretrained.encode_names(p.class_names, p.templates) for n, p in probes.items()}
        stream: Sequence[float | None] = [None for _ in tasks]
        if strategy.learning == "none" and scores_as_zero_shot(strategy):
            with strategy.model.weights(values), strategy.model.eval().cached_text():
                test, stream = scorer.score_test(torch.cat([*text.values()]))
        else:
            test = score(strategy, scenario, {}, values).test
        classes = self._zero_shot_classes()

        def joint_scores(images: Tensor, names: Tensor) -> Tensor:
            features = pretrained.image_features(images)
            return torch.cat([pretrained.logits(features, t) for t in (classes, names)], 1)

        accuracies, joint = scorer.score_probes(
            pretrained, text, pretrained.image_features, joint_scores
        )
        return Scores(test, accuracies, scorer.rows(stream, joint))

    def _zero_shot_classes(self) -> Tensor:
        """Return the zero-shot text features (K, d) of the stream's classes and templates."""
        model, scenario = self.strategy.model, self.scenario
        if model.context is None or isinstance(scenario.templates[0], str):
            return model.zero_shot_text_features
        # Learned prompts have one template for all classes.
        return self.pretrained.encode_names(scenario.class_names, scenario.templates)

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
            encode = partial(encode_images, strategy, class_tokens=strategy.class_tokens)
            return with_features(self.scenario, self.probes, encode)

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
        tokens = self.strategy.class_tokens
        return self.encoder.encode(self.scenario, self.probes, train=False, class_tokens=tokens)
