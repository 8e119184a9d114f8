"""Accuracy after the last task when any of the five most probable classes may be right."""

from collections.abc import Mapping, Sequence
from typing import Any

from cl_clipfit.metrics.predictions import Predictions, learned

TITLE = "top-5"


def metric(rows: Sequence[Predictions], result: Mapping[str, Any]) -> float | None:
    """Return the share of images whose class is among the five best, in percent."""
    last = learned(rows)
    hits = (last.top == last.labels[:, None]).any(1)
    return 100.0 * float(hits.mean()) if len(hits) else None
