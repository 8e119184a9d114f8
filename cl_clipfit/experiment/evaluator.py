"""The rows of a run's tables: all weights that it compares, scored after every task."""

import time
from collections.abc import Mapping

from torch import Tensor

from cl_clipfit.evaluation.scoring import Scoreboard, Scorer, Scores
from cl_clipfit.experiment.record import RunRecord
from cl_clipfit.metrics.tables import seen_curve

_CURRENT = ""  # the weights that a strategy has now, among those it is compared with


class Evaluator:
    """Scores a strategy, and the weights that it is compared with, into the record of a run.

    Args:
        scorer: encodes and scores the test images and the probes.
        record: gets a row in every table.
    """

    def __init__(self, scorer: Scorer, record: RunRecord) -> None:
        self.scorer, self.record = scorer, record
        self._before: Scores | None = None  # of the model as it was before training

    def evaluate(self) -> None:
        """Fill one row of every table; an image tower sees the test images once."""
        started = time.perf_counter()
        record, strategy = self.record, self.scorer.strategy
        compared = strategy.compared()
        boards = {_CURRENT: record.board}
        for name in compared:
            boards[name] = record.compared.setdefault(name, Scoreboard(self.scorer.scenario))
        weights: dict[str, Mapping[str, Tensor]] = {_CURRENT: {}, **compared}
        if strategy.learning == "none" and self._before:  # which is not resumed, but run again
            boards[_CURRENT].add(self._before)
            del weights[_CURRENT]
        for name, scores in self.scorer.score(weights):
            if not record.board.tables.seen:
                self._keep_before(scores)
            elif not boards[name].tables.seen:
                boards[name].add(self._row_zero())
            boards[name].add(scores)
        record.eval_seconds.append(time.perf_counter() - started)

    def _row_zero(self) -> Scores:
        """Return the scores of the model as it was before training; a resumed run has none."""
        if self._before is None:
            start = self.scorer.strategy.model.pretrained_values
            ((_, self._before),) = self.scorer.score({_CURRENT: start})
        return self._before

    def _keep_before(self, scores: Scores) -> None:
        self._before, scenario = scores, self.scorer.scenario
        tasks = scenario.task_classes[: scenario.trained_tasks]
        self.record.zero_shot = seen_curve(
            scores.test, scenario.test.labels, tasks, scenario.test_tasks
        )
