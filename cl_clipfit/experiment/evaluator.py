"""Fill the rows of a run's tables: score all weights that it compares after every task."""

import time
from collections.abc import Mapping

from torch import Tensor

from cl_clipfit.evaluation.scoring import Scoreboard, Scorer, Scores
from cl_clipfit.experiment.record import RunRecord
from cl_clipfit.metrics.tables import seen_curve

_CURRENT = ""  # name of the strategy's current weights


class Evaluator:
    """Scores a strategy and the weights it is compared with, and adds the scores to a run's record.

    Args:
        scorer: encodes and scores the test images and the probes.
        record: receives a row in every table.
    """

    def __init__(self, scorer: Scorer, record: RunRecord) -> None:
        self.scorer, self.record = scorer, record
        self._before: Scores | None = None  # before training

    def evaluate(self) -> None:
        """Add one row to every table; each image tower encodes the test images once."""
        started = time.perf_counter()
        record, strategy = self.record, self.scorer.strategy
        compared = strategy.compared()
        boards = {_CURRENT: record.board}
        for name in compared:
            boards[name] = record.compared.setdefault(name, Scoreboard(self.scorer.scenario))
        weights: dict[str, Mapping[str, Tensor]] = {_CURRENT: {}, **compared}
        if strategy.learning == "none" and self._before:  # such a run is never resumed
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
        """Return the scores before training; a resumed run has to compute them."""
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
