"""Keep what a run predicts for every test image, as its tables are filled."""

from collections.abc import Callable

from torch import Tensor

from cl_clipfit.data.streams import Scenario
from cl_clipfit.metrics.predictions import predictions
from cl_clipfit.storage.predictions import has_predictions, write_predictions
from cl_clipfit.storage.run_folder import RunFolder


class PredictionWriter:
    """Writes a file for each row of a run's tables; all of them or none.

    Args:
        folder: of the run.
        scenario: the stream of tasks.
        note: receives a line if an earlier process kept none.
    """

    def __init__(self, folder: RunFolder, scenario: Scenario, note: Callable[[str], None]) -> None:
        self.folder, self.scenario, self.note = folder, scenario, note
        self.writes = False  # until the folder is prepared: `verify --replay` writes nothing

    def open(self, finished: int) -> None:
        """Begin, or continue after the rows that a resumed run has.

        Args:
            finished: finished tasks; with 0, row 0 is written too.
        """
        if not self.folder.writes:
            return
        self.writes = not finished or has_predictions(self.folder.path, finished + 1)
        if not self.writes:
            self.note(
                f"{self.folder.path.name}: keeps no predictions, since those of its earlier tasks"
                " are not there"
            )

    def append(self, row: int, scores: Tensor) -> None:
        """Write the predictions of a row.

        Args:
            row: 0 before training, t after task t.
            scores: (N, K) of all test images against all classes, which filled the tables.
        """
        if not self.writes:
            return
        scenario, seen = self.scenario, self.scenario.task_classes[:row]
        classes = list(dict.fromkeys(c for task in seen for c in task)) or None
        kept = predictions(scores, scenario.test.labels, scenario.test_tasks, classes)
        write_predictions(self.folder.path, row, kept)
