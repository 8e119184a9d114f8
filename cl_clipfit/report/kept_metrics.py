"""Apply metrics of single predictions to finished runs, from the predictions that they keep."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_clipfit.errors import UserError
from cl_clipfit.metrics.predictions import Predictions
from cl_clipfit.registry import Entry, Registry, describe_file
from cl_clipfit.report.columns import ASKED, LOWER
from cl_clipfit.storage.predictions import has_predictions, read_predictions
from cl_clipfit.storage.result import Result

Metric = Callable[[Sequence[Predictions], Mapping[str, Any]], float | None]


@dataclass(frozen=True)
class KeptMetric:
    """A metric of the predictions that runs keep.

    Attributes:
        name: what `result.metrics` calls it.
        title: of its column.
        lower: whether less is better.
        function: returns its value; see `cl_clipfit.metrics.by_image`.
    """

    name: str
    title: str
    lower: bool
    function: Metric


def find_metric(asked: str | Path | Metric, registry: Registry | None = None) -> KeptMetric:
    """Return a metric.

    Args:
        asked: its name, a Python file (its name ends in ".py"), or a function.
        registry: where names are looked up; default: a new one.

    Raises:
        UserError: the name is unknown, or the file defines no `metric`.
    """
    if callable(asked):
        name = getattr(asked, "__name__", "metric").replace("_", "-")
        return KeptMetric(name, name, False, asked)
    if str(asked).endswith(".py"):
        entry: Entry = describe_file(Path(asked), "metrics", "--metric")
    else:
        entry = (registry or Registry()).get("metrics", str(asked))
    about = entry.about
    title, lower = str(about.get("TITLE", entry.name)), about.get("LOWER_IS_BETTER") is True
    return KeptMetric(entry.name, title, lower, entry.metric_function())


def measured(results: Sequence[Result], asked: Sequence[str | Path | Metric]) -> list[Result]:
    """Return the results with further metrics; None in runs that kept no predictions.

    Args:
        results: finished runs.
        asked: metrics, as in `find_metric`.

    Raises:
        UserError: no run kept predictions, or a metric is unknown or fails.
    """
    registry = Registry()
    metrics = [find_metric(one, registry) for one in asked]
    kept = [read_predictions(result.path) for result in results]
    if metrics and not any(kept):
        raise UserError(
            f"--metric {metrics[0].name}: none of {len(results)} runs keeps predictions (they were"
            " made with --no-predictions or an older version): repeat them with --fresh"
        )
    titles = {metric.name: metric.title for metric in metrics}
    lower = [metric.name for metric in metrics if metric.lower]
    found = []
    for result, rows in zip(results, kept, strict=True):
        values = {m.name: _value(m, rows, result) if rows else None for m in metrics}
        content = result.content
        metrics_of_run = {**content["metrics"], **values}
        found.append(
            Result(result.path, {**content, "metrics": metrics_of_run, ASKED: titles, LOWER: lower})
        )
    return found


def without_predictions(results: Sequence[Result]) -> int:
    """Return how many runs keep no predictions."""
    return sum(not has_predictions(result.path, 1) for result in results)


def _value(metric: KeptMetric, rows: Sequence[Predictions], result: Result) -> float | None:
    try:
        found = metric.function(rows, result.content)
        value = None if found is None else float(found)
    except UserError:
        raise
    except Exception as error:  # a user's code may raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"metric {metric.name} fails on {result.path}: {type(error).__name__}: {reason}"
        ) from error
    if value is not None and not math.isfinite(value):
        raise UserError(f"metric {metric.name} is {value} on {result.path}: return None instead")
    return value
