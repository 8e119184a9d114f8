"""The columns of a comparison, which its protocol determines, and the values that they show."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from cl_clipfit.report.display import literal
from cl_clipfit.report.fitted import best_of, means_of

COLUMNS = {
    "average_accuracy": "average\naccuracy",
    "last_accuracy": "last\naccuracy",
    "learning_accuracy": "learning\naccuracy",
    "forgetting_all_classes": "forgetting\n(all classes)",
    "probe_accuracy": "mean over\nprobes",
    "retention": "retention",
}
# Only shown where there are probes; definitions in `metrics.functional`.
_JOINT = {"joint_accuracy": "joint\naccuracy", "joint_retention": "joint\nretention"}
# For protocols other than class-incremental and domain-incremental streams.
_COLUMNS = {
    "mtil": {
        "transfer": "Transfer\ntask-aware",
        "mtil_average": "Average\ntask-aware",
        "mtil_last": "Last\ntask-aware",
        "last_accuracy": "last, all\nclasses seen",
        "probe_accuracy": "mean over\nprobes",
        "retention": "retention",
    },
    "x-tail": {
        "x_tail_transfer": "Transfer\nall classes",
        "x_tail_average": "Average\nall classes",
        "x_tail_last": "Last\nall classes",
        "last_accuracy": "last, all\nimages",
        "probe_accuracy": "mean over\nprobes",
        "retention": "retention",
    },
    "base-to-novel": {
        "base": "base",
        "novel": "novel",
        "harmonic_mean": "harmonic\nmean",
        "probe_accuracy": "mean over\nprobes",
        "retention": "retention",
    },
}
ASKED = "asked_metrics"  # key in a result's content: titles of the metrics asked for, by name
LOWER = "lower_is_better"  # key in a result's content: names of metrics
PROBE = "probe: "  # prefix of a column that is a probe's last accuracy, not a metric
MOST_PROBES = 6
WIDE = 6  # of a table with more columns, the headers and cells are narrower


def asked_metrics(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of the metrics that a comparison asks for besides its own."""
    return [*results[0].get(ASKED, ())]


def columns(results: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the columns of the results' protocol: titles by metric or probe.

    If a comparison asks for metrics, these follow the first two.
    """
    shown = _protocol_columns(results)
    if asked := results[0].get(ASKED):
        shown = dict([*shown.items()][:2])
        shown |= {name: literal(title.replace(" ", "\n")) for name, title in asked.items()}
    return shown


def _protocol_columns(results: Sequence[dict[str, Any]]) -> dict[str, str]:
    protocol = results[0].get("protocol", "class-incremental")
    scored = any(value(result, column) is not None for result in results for column in _JOINT)
    joint = _JOINT if scored else {}
    if protocol != "transfer":
        return {**_COLUMNS.get(protocol, COLUMNS), **joint}
    names = probe_names(results)[:MOST_PROBES]
    letters = 12 if len(names) < WIDE - 2 else 10
    probes = {PROBE + n: "\n".join(map(literal, textwrap.wrap(n, letters))) for n in names}
    return {
        "last_accuracy": "last\naccuracy",
        "probe_accuracy": "mean over\nprobes",
        **probes,
        "retention": "retention",
        **joint,
    }


def probe_names(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of all probes, in order of appearance."""
    return list(dict.fromkeys(name for result in results for name in result["probes"]))


def value(scored: dict[str, Any], column: str) -> float | None:
    """Return the value of a column, for a result or any other mapping with metrics and probes."""
    if column.startswith(PROBE):
        accuracies = scored["probes"].get(column.removeprefix(PROBE))
        return accuracies[-1] if accuracies else None
    return scored["metrics"].get(column)


def by_strategy(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group results by strategy and its settings, in order of appearance."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["label"], []).append(result)
    return groups


def compared(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the scores of the weights that the runs are compared with, by name."""
    others: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        for name, other in ((result.get("merge") or {}).get("compared") or {}).items():
            others.setdefault(name, []).append(other)
    return others


def best_by_column(results: Sequence[dict[str, Any]]) -> dict[str, set[str]]:
    """Return the methods with the best mean in each column of the results' table."""
    less = {"forgetting_all_classes", "forgetting", *results[0].get(LOWER, ())}
    groups = by_strategy(results)
    return {key: best_of(values_of(groups, key), key in less) for key in columns(results)}


def values_of(
    groups: Mapping[str, Sequence[dict[str, Any]]], column: str
) -> dict[str, list[float | None]]:
    """Return the values of a column, of every run of each group."""
    return {name: [value(r, column) for r in group] for name, group in groups.items()}


def best_method(groups: Mapping[str, Sequence[dict[str, Any]]], column: str) -> str:
    """Return the method with the highest mean in a column; of equal ones the first."""
    means = means_of(values_of(groups, column))
    return max(groups, key=lambda name: float("-inf") if (m := means[name]) is None else m)
