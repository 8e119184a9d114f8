"""Fill the rows of a run's tables: score all weights that it compares after every task."""

import time
from collections.abc import Callable, Mapping

from torch import Tensor

from cl_clipfit.evaluation.feature_reuse import scores_as_zero_shot
from cl_clipfit.evaluation.scoreboard import Scoreboard, Scores
from cl_clipfit.evaluation.scoring import Scorer
from cl_clipfit.experiment.record import RunRecord
from cl_clipfit.metrics.tables import learning_row, seen_curve

_CURRENT = ""  # name of the strategy's current weights


class Evaluator:
    """Scores a strategy and the weights it is compared with, and adds the scores to a run's record.

    Args:
        scorer: encodes and scores the test images and the probes.
        record: receives a row in every table.
        keep: receives the number of each row, and the scores (N, K) of the test images.
    """

    def __init__(
        self, scorer: Scorer, record: RunRecord, keep: Callable[[int, Tensor], None]
    ) -> None:
        self.scorer, self.record, self.keep = scorer, record, keep
        self._before: Scores | None = None  # before training
        self._fixed: Scores | None = None  # of a method that does not learn

    def evaluate(self) -> None:
        """Add one row to every table; each image tower encodes the test images once."""
        started = time.perf_counter()
        if self.record.board.tables.seen:
            self._evaluate_task()
        else:
            self._evaluate_before()
        self.record.eval_seconds.append(time.perf_counter() - started)

    def _evaluate_before(self) -> None:
        scores, scenario = self._row_zero(), self.scorer.scenario
        self._add(scores)
        tasks = scenario.task_classes[: scenario.trained_tasks]
        of_stream = scores.test, scenario.test.labels, tasks, scenario.test_tasks
        self.record.zero_shot = seen_curve(*of_stream)
        self.record.zero_shot_learning = learning_row(*of_stream)

    def _evaluate_task(self) -> None:
        record, strategy = self.record, self.scorer.strategy
        task = len(record.board.tables.seen)
        compared = strategy.compared()
        boards = {_CURRENT: record.board}
        for name in compared:
            boards[name] = record.compared.setdefault(name, Scoreboard(self.scorer.scenario))
        weights: dict[str, Mapping[str, Tensor]] = {_CURRENT: {}, **compared}
        if strategy.learning == "none":
            self._add(self._unchanged())
            del weights[_CURRENT]
        for name, scores in self.scorer.score(weights, [task]):
            if not boards[name].tables.seen:
                boards[name].add(self._row_zero())
            if name == _CURRENT:
                self._add(scores)
            else:
                boards[name].add(scores)

    def _add(self, scores: Scores) -> None:
        """Add the scores of the strategy's current weights, and keep its predictions."""
        row = len(self.record.board.tables.seen)
        self.record.board.add(scores)
        self.keep(row, scores.test)

    def _row_zero(self) -> Scores:
        """Return the scores before training; a resumed run has to compute them."""
        if self._before is None:
            start = self.scorer.strategy.model.pretrained_values
            self._before = self.scorer.before_training(start)
        return self._before

    def _unchanged(self) -> Scores:
        """Return the scores of a method that does not learn, which are computed once."""
        if self._fixed is None and scores_as_zero_shot(self.scorer.strategy):
            self._fixed = self._row_zero()
        if self._fixed is None:
            tasks = range(self.scorer.scenario.trained_tasks + 1)
            ((_, self._fixed),) = self.scorer.score({_CURRENT: {}}, tasks)
        return self._fixed
