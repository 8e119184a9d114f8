"""Paired differences of a comparison: each method minus the best, on the runs that both have."""

from collections.abc import Mapping

from cl_clipfit.report.columns import best_method, columns
from cl_clipfit.report.paired import Difference, differences
from cl_clipfit.storage.result import Content

Groups = Mapping[str, list[Content]]  # results by label
_METRICS = 2  # columns of the table of results


def difference_table(groups: Groups) -> tuple[str, list[str], list[list[str]]]:
    """Return the method that the others are compared with, and a table: a row for each of them.

    It is the one with the best mean in the first column. No row if no two methods share a run, or
    if there is one run of each, which tells nothing about chance.
    """
    titles = columns([result for group in groups.values() for result in group])
    shown = [key for key in list(titles)[:_METRICS] if not key.startswith("probe")]
    best = best_method(groups, shown[0])
    found = [one for one in differences(groups, best, shown) if one.interval is not None]
    head = ["strategy", "pairs"]
    for key in shown:
        head += [titles[key].replace("\n", " "), "p"]
    rows = []
    for label in dict.fromkeys(one.label for one in found):
        by_metric = {one.metric: one for one in found if one.label == label}
        cells = [cell for key in shown for cell in _cells(by_metric.get(key))]
        rows.append([label, str(max(one.pairs for one in by_metric.values())), *cells])
    return best, head, rows


def _cells(one: Difference | None) -> list[str]:
    if one is None or one.interval is None or one.p is None:
        return ["-", "-"]
    return [f"{one.mean:+.1f} ± {one.interval:.1f}", f"{one.p:.3f}"]
