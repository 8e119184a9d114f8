"""The scores of one pass over the test images and the probes, and the tables that they fill."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from cl_clipfit import metrics
from cl_clipfit.data.streams import Scenario
from cl_clipfit.evaluation.joint_scoring import JointRow
from cl_clipfit.metrics.tables import AccuracyTables

_TABLES = ("seen", "all_classes", "task_aware")


@dataclass(frozen=True)
class Scores:
    """The scores of one pass.

    Attributes:
        test: (N, K) of all test images against all classes.
        probes: accuracy in percent on each probe.
        joint: accuracies in the joint label space by the number of tasks seen; empty if there are
            no probes.
    """

    test: Tensor
    probes: dict[str, float]
    joint: dict[int, JointRow] = field(default_factory=dict)


@dataclass
class Scoreboard:
    """The tables of one method on one stream: one row before training, one after every task.

    Attributes:
        scenario: the stream.
        tables: accuracy on every task.
        probes: accuracy on every probe.
        joint: accuracies in the joint label space.
        zero_shot: of zero-shot CLIP on every probe in the joint label space of each row.
    """

    scenario: Scenario
    tables: AccuracyTables = field(init=False)
    probes: dict[str, list[float]] = field(default_factory=dict)
    joint: list[JointRow] = field(default_factory=list)
    zero_shot: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tables = AccuracyTables(self.scenario.test_samples)

    def add(self, scores: Scores) -> None:
        """Add a row to every table."""
        scenario, row = self.scenario, len(self.tables.seen)
        labels, tasks = scenario.test.labels, scenario.test_tasks
        self.tables.append(scores.test, labels, scenario.task_classes, tasks)
        for name, value in scores.probes.items():
            self.probes.setdefault(name, []).append(value)
        if row == 0:
            self.zero_shot = [scores.joint[t].probes for t in sorted(scores.joint)]
        if row in scores.joint:
            self.joint.append(scores.joint[row])

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
        joint = [asdict(row) for row in self.joint]
        return {
            "tables": tables, "probes": self.probes, "joint": joint, "zero_shot": self.zero_shot,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the rows that `state` returned."""
        self.probes = state["probes"]
        self.joint = [JointRow(**row) for row in state.get("joint", ())]  # 0.1.0 had none
        self.zero_shot = state.get("zero_shot", [])
        for name in _TABLES:
            rows = state["tables"][name].tolist()
            getattr(self.tables, name).extend(
                [None if math.isnan(v) else v for v in row] for row in rows
            )

    def summary(self) -> dict[str, Any]:
        """Return tables, metrics and curves, as `result.json` holds them."""
        t, samples, joint = self.tables, self.scenario.test_samples, self._joint_curves()
        return {
            "accuracy_matrix": t.seen,
            "all_classes_matrix": t.all_classes,
            "task_aware_matrix": t.task_aware,
            "metrics": metrics.summarize(
                t.seen, t.all_classes, t.task_aware, samples, self.probes, joint
            ),
            "curves": metrics.curves(t.seen, t.all_classes, samples, self.probes, joint),
            "probes": self.probes,
            "joint": joint,
        }

    def _joint_curves(self) -> metrics.JointCurves | None:
        """Return the joint accuracies of all rows; None unless every row has them."""
        rows = len(self.tables.seen)
        if not self.joint or len(self.joint) < rows:
            return None
        return {
            "stream": [row.stream for row in self.joint],
            "probes": {n: [row.probes[n] for row in self.joint] for n in self.probes},
            "zero_shot": {n: [row[n] for row in self.zero_shot[:rows]] for n in self.probes},
        }
