"""Score images among their own classes and in the joint label space, in one pass of the tower."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from cl_clipfit.clip import CLIPClassifier
from cl_clipfit.data.source import ImageSet, Source
from cl_clipfit.data.streams import Scenario
from cl_clipfit.evaluation.feature_reuse import joins_scores
from cl_clipfit.metrics.joint import JointSpace
from cl_clipfit.metrics.tables import accuracy
from cl_clipfit.training.strategy import CLIPStrategy


@dataclass(frozen=True)
class JointRow:
    """Accuracies in percent among the classes seen and the names of all probes.

    Attributes:
        stream: on the test images of the tasks seen; None if there are none.
        probes: on each probe.
    """

    stream: float | None
    probes: dict[str, float]


class JointScorer:
    """Scores test images and probes; each image and each name of a probe is encoded once.

    Args:
        strategy: for scoring.
        scenario: the stream.
        probes: data sets scored zero-shot, at least one.
        tasks: the numbers of tasks seen whose joint label spaces are scored, ascending.
    """

    def __init__(
        self,
        strategy: CLIPStrategy,
        scenario: Scenario,
        probes: Mapping[str, Source],
        tasks: Sequence[int],
    ) -> None:
        self.strategy, self.scenario, self.probes, self.tasks = strategy, scenario, probes, tasks
        ends = (max(classes, default=-1) + 1 for classes in scenario.task_classes)
        seen = [*accumulate(ends, max, initial=0)]  # labels are in order of arrival
        names = {name: source.class_names for name, source in probes.items()}
        self.space = JointSpace(scenario.class_names, seen, names)

    def score_test(self, names: Tensor) -> tuple[Tensor, list[float | None]]:
        """Score the test images of the stream.

        Args:
            names: (P, d), text features of the names of all probes.

        Returns:
            scores (N, K), and for each of `tasks` the joint accuracy on the tasks seen.
        """
        strategy, model = self.strategy, self.strategy.model
        classes, joins = len(model.class_names), joins_scores(self.strategy)

        def both(images: Tensor) -> tuple[Tensor, Tensor]:
            with model.known_images(images, model.image_features(images)):
                joint = strategy.joint_scores(images, names)
                return joint[:, :classes] if joins else strategy.scores(images), joint

        scores, right = self._pass(self.scenario.test, both)
        rows = [right[self.scenario.test_tasks < task, i] for i, task in enumerate(self.tasks)]
        return scores, [_share(row) if len(row) else None for row in rows]

    def score_probes(
        self,
        model: CLIPClassifier,
        text: Mapping[str, Tensor],
        name_features: Callable[[Tensor], Tensor],
        joint_scores: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[dict[str, float], list[dict[str, float]]]:
        """Score the probes.

        Args:
            model: encodes the images.
            text: features (P_i, d) of the names of each probe.
            name_features: encodes images for them, as `CLIPStrategy.name_features`.
            joint_scores: scores images against classes and names, as `CLIPStrategy.joint_scores`.

        Returns:
            accuracies by probe: among its own names, and for each of `tasks` the joint ones.
        """
        names = torch.cat([*text.values()])
        own, joint = dict[str, float](), [dict[str, float]() for _ in self.tasks]
        for name, source in self.probes.items():

            def both(images: Tensor, own_names: Tensor = text[name]) -> tuple[Tensor, Tensor]:
                features = model.image_features(images)
                with model.known_images(images, features):
                    own = model.logits(name_features(images), own_names)
                    return own, joint_scores(images, names)

            scores, right = self._pass(source.test, both, name)
            own[name] = accuracy(scores, source.test.labels)
            for i, row in enumerate(joint):
                row[name] = _share(right[:, i])
        return own, joint

    def rows(
        self, stream: Sequence[float | None], probes: Sequence[dict[str, float]]
    ) -> dict[int, JointRow]:
        """Return the joint accuracies by the number of tasks seen."""
        rows = zip(self.tasks, stream, probes, strict=True)
        return {task: JointRow(accuracy, of_probes) for task, accuracy, of_probes in rows}

    def _pass(
        self,
        data: ImageSet,
        both: Callable[[Tensor], tuple[Tensor, Tensor]],
        probe: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return scores (N, C), and whether the joint answers are right, bool (N, len(tasks))."""

        def score(images: Tensor, labels: Tensor) -> Tensor:
            scores, joint = both(images)
            right = self.space.right(joint, labels, self.tasks, probe)
            return torch.cat([scores, right.to(scores)], 1).cpu()

        rows = self.strategy.in_batches(score, data.images, data.labels)
        scores, right = rows.tensor_split([rows.shape[1] - len(self.tasks)], 1)
        return scores, right.bool()


def _share(right: Tensor) -> float:
    """Return the percentage of answers (N,) that are right."""
    return 100.0 * int(right.sum()) / len(right)
