"""Macro F1 after the last task: the mean over the classes seen of 2PR / (P + R).

P is the precision and R the recall of a class, by scikit-learn's `f1_score(average="macro")`; a
class that is neither true nor predicted of an image counts 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cl_clipfit.metrics.predictions import Predictions, learned

TITLE = "macro F1"


def metric(rows: Sequence[Predictions], result: Mapping[str, Any]) -> float | None:
    """Return the mean in percent."""
    from sklearn.metrics import f1_score  # takes a second

    last = learned(rows)
    if not len(last.labels):
        return None
    score = f1_score(last.labels, last.top[:, 0], average="macro", zero_division=0)
    return 100.0 * float(score)
