"""Accuracy of the class that is known worst, after the last task.

Over all test images of the classes seen; the mean over classes hides a class that is lost.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cl_clipfit.metrics.predictions import Predictions, class_accuracy, learned

TITLE = "worst class"


def metric(rows: Sequence[Predictions], result: Mapping[str, Any]) -> float | None:
    """Return the lowest accuracy of a class, in percent."""
    return min(class_accuracy(learned(rows)).values(), default=None)
