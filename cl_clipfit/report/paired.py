"""Differences between two methods on the seeds that both have, with a paired test."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cl_clipfit.report.tables import confidence_interval

Groups = Mapping[str, Sequence[Mapping[str, Any]]]  # results by label


@dataclass(frozen=True)
class Difference:
    """One method minus another, over the runs that differ in nothing else.

    Attributes:
        label: the method.
        metric: of which the difference is taken, in points.
        mean: over the pairs.
        interval: half the width of the 95 % interval of the mean (Student); None of one pair.
        p: of the paired t-test that the mean is 0 (`scipy.stats.ttest_rel`); None of one pair.
        pairs: number of pairs.
    """

    label: str
    metric: str
    mean: float
    interval: float | None
    p: float | None
    pairs: int


def differences(groups: Groups, against: str, metrics: Sequence[str]) -> list[Difference]:
    """Return each method minus the method `against`, for every metric that both have.

    Runs are paired by seed and class order.

    Example:
        >>> def run(seed, accuracy):
        ...     return {"seed": seed, "class_order": [0], "metrics": {"last": accuracy}}
        >>> groups = {"a": [run(0, 80.0), run(1, 82.0)], "b": [run(0, 79.0), run(1, 80.0)]}
        >>> found = differences(groups, "a", ["last"])[0]
        >>> found.label, found.mean, found.pairs, round(found.p, 3)
        ('b', -1.5, 2, 0.205)
    """
    found = []
    for label in groups:
        for metric in metrics if label != against else ():
            pairs = _pairs(groups[label], groups[against], metric)
            if pairs:
                found.append(_difference(label, metric, pairs))
    return found


def _pairs(
    runs: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], metric: str
) -> list[tuple[float, float]]:
    def by_draw(group: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, ...], float | None]:
        return {(r["seed"], *r["class_order"]): r["metrics"].get(metric) for r in group}

    ours, theirs = by_draw(runs), by_draw(others)
    return [
        (value, other)
        for key, value in ours.items()
        if value is not None and (other := theirs.get(key)) is not None
    ]


def _difference(label: str, metric: str, pairs: Sequence[tuple[float, float]]) -> Difference:
    gaps = [one - other for one, other in pairs]
    if len(gaps) == 1:
        return Difference(label, metric, gaps[0], None, None, 1)
    if len(set(gaps)) == 1:  # the test divides by their spread
        p = 1.0 if gaps[0] == 0 else 0.0
    else:
        from scipy.stats import ttest_rel

        with warnings.catch_warnings(action="ignore"):  # differences that are equal but for bits
            p = float(ttest_rel(*zip(*pairs, strict=True)).pvalue)
    return Difference(label, metric, fmean(gaps), confidence_interval(gaps), p, len(gaps))
