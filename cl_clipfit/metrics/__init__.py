"""Accuracy tables and every number derived from them."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from cl_clipfit.metrics import functional
from cl_clipfit.metrics.functional import TableLike


class JointCurves(TypedDict):
    """Accuracies in the joint label space (`metrics.joint`), in percent, for t = 0..T.

    Attributes:
        stream: on the test images of tasks 1..t; None if there are none.
        probes: on each probe.
        zero_shot: of zero-shot CLIP on each probe.
    """

    stream: Sequence[float | None]
    probes: Mapping[str, Sequence[float]]
    zero_shot: Mapping[str, Sequence[float]]


_NO_PROBES = JointCurves(stream=(), probes={}, zero_shot={})


def summarize(
    seen: TableLike,
    all_classes: TableLike,
    task_aware: TableLike,
    test_samples: Sequence[int],
    probes: Mapping[str, Sequence[float]],
    joint: JointCurves | None = None,
) -> dict[str, float | None]:
    """Return all metrics of a finished run by name, in percent; None if undefined."""
    joint = joint or _NO_PROBES
    base, novel = functional.base_accuracy(task_aware), functional.novel_accuracy(task_aware)
    return {
        "average_accuracy": functional.average_accuracy(seen, test_samples),
        "last_accuracy": functional.last_accuracy(seen, test_samples),
        "learning_accuracy": functional.learning_accuracy(seen),
        "forgetting": functional.forgetting(seen),
        "backward_transfer": functional.backward_transfer(seen),
        "forgetting_all_classes": functional.forgetting(all_classes),
        "forward_transfer": functional.forward_transfer(all_classes),
        "transfer": functional.transfer(task_aware),
        "retention": functional.retention(probes),
        "mtil_average": functional.mtil_average(task_aware),
        "mtil_last": functional.mtil_last(task_aware),
        "x_tail_transfer": functional.transfer(all_classes),
        "x_tail_average": functional.mtil_average(all_classes),
        "x_tail_last": functional.mtil_last(all_classes),
        "base": base,
        "novel": novel,
        "harmonic_mean": functional.harmonic_mean(base, novel),
        "probe_accuracy": functional.probe_accuracy(probes),
        "joint_accuracy": functional.joint_accuracy(joint["stream"]),
        "joint_retention": functional.joint_retention(joint["probes"], joint["zero_shot"]),
    }


def curves(
    seen: TableLike,
    all_classes: TableLike,
    test_samples: Sequence[int],
    probes: Mapping[str, Sequence[float]],
    joint: JointCurves | None = None,
) -> dict[str, list[float | None]]:
    """Return the curves to plot over t = 0..T: A_t, forgetting among all classes, retention.

    The last two also in the joint label space.
    """
    rows, joint = range(len(seen)), joint or _NO_PROBES
    ranked, zero_shot = joint["probes"], joint["zero_shot"]
    return {
        "accuracy": [functional.seen_accuracy(seen, test_samples, t) for t in rows],
        "forgetting": [functional.forgetting(all_classes, after=t) for t in rows],
        "retention": [functional.retention(probes, after=t) for t in rows],
        "joint_accuracy": [*joint["stream"]] or [None for _ in rows],
        "joint_retention": [functional.joint_retention(ranked, zero_shot, t) for t in rows],
    }
