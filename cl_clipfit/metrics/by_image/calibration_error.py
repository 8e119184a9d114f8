"""Expected calibration error after the last task: how far probabilities are from accuracies.

ECE = sum_b n_b / n |accuracy_b - confidence_b| over 15 bins of equal width of the probability of
the chosen class (Naeini et al. 2015; Guo et al. 2017, arXiv 1706.04599, section 2). Of a head whose
scores are no logits it says nothing: its softmax is no probability.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cl_clipfit.metrics.predictions import Predictions, learned

TITLE = "calibration error"
LOWER_IS_BETTER = True
BINS = 15


def metric(rows: Sequence[Predictions], result: Mapping[str, Any]) -> float | None:
    """Return the error in percent."""
    last = learned(rows)
    if not len(last.labels):
        return None
    confidence = last.scores[:, 0].astype(np.float64)
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # (0, 1/15], ...
    gaps = np.bincount(place, weights=last.right - confidence, minlength=BINS)
    return 100.0 * float(np.abs(gaps).sum()) / len(place)
