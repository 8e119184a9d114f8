"""The table at the end of a command, and its CSV: which columns, the scenario's protocol says."""

import statistics
import textwrap
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from cl_clipfit.errors import printable
from cl_clipfit.report.display import literal
from cl_clipfit.storage.files import csv_text

COLUMNS = {
    "average_accuracy": "average\naccuracy",
    "last_accuracy": "last\naccuracy",
    "learning_accuracy": "learning\naccuracy",
    "forgetting_all_classes": "forgetting\n(all classes)",
    "retention": "retention",
}
# Of protocols other than class-incremental and domain-incremental streams.
_COLUMNS = {
    "mtil": {
        "transfer": "Transfer\ntask-aware",
        "mtil_average": "Average\ntask-aware",
        "mtil_last": "Last\ntask-aware",
        "last_accuracy": "last, all\nclasses seen",
        "retention": "retention",
    },
    "base-to-novel": {
        "base": "base",
        "novel": "novel",
        "harmonic_mean": "harmonic\nmean",
        "retention": "retention",
    },
}
_PROBE = "probe: "  # a column of its last accuracy, in place of a metric's name
_MOST_PROBES = 8
_WIDE = 6  # with more columns, intervals stand below their means, and lines and costs go
_NARROW: Any = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0)}


def columns(results: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the columns of the results' protocol: metric, or probe, and title."""
    protocol = results[0].get("protocol", "class-incremental")
    if protocol != "transfer":
        return _COLUMNS.get(protocol, COLUMNS)
    names = _probe_names(results)[:_MOST_PROBES]
    letters = 12 if len(names) < _WIDE - 2 else 10
    probes = {_PROBE + n: "\n".join(map(literal, textwrap.wrap(n, letters))) for n in names}
    return {
        "last_accuracy": "last\naccuracy",
        "probe_accuracy": "mean of\nprobes",
        **probes,
        "retention": "retention",
    }


def _probe_names(results: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result["probes"]))


def value(found: dict[str, Any], column: str) -> float | None:
    """Return a column's number, of a result or of anything else with metrics and probes."""
    if column.startswith(_PROBE):
        accuracies = found["probes"].get(column.removeprefix(_PROBE))
        return accuracies[-1] if accuracies else None
    return found["metrics"].get(column)


def by_strategy(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group results by strategy and its settings, in order of appearance."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["label"], []).append(result)
    return groups


def _cell(values: Sequence[float | None], between: str = " ") -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    mean = f"{statistics.fmean(known):.1f}"
    return f"{mean}{between}± {confidence_interval(known):.1f}" if len(known) > 1 else mean


def confidence_interval(values: Sequence[float]) -> float:
    """Return half the width of the 95 % confidence interval of the mean, after Student.

    Example:
        >>> round(confidence_interval([1.0, 2.0, 3.0, 4.0, 5.0]), 3)
        1.963
    """
    from scipy.stats import t

    n = len(values)
    return float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5


def results_table(results: Sequence[dict[str, Any]]) -> Table:
    """Return one row a strategy: mean (± 95 % confidence interval) over its seeds, in percent.

    Below a method that names other weights to be compared with, a row for each of these.
    """
    shown = columns(results)
    wide = len(shown) > _WIDE
    between = "\n" if wide else " "
    layout = {**_NARROW, "caption": _left_out(results)} if wide else {}
    table = Table(title=_title(results), **layout)
    table.add_column("strategy", overflow="fold")
    for title in shown.values():
        table.add_column(title, justify="right", overflow="fold")
    if not wide:
        table.add_column("trained\nparameters", justify="right", overflow="fold")
        table.add_column("seconds\na run", justify="right", overflow="fold")
    for name, group in by_strategy(results).items():
        seconds = [sum(map(sum, r["timings"].values())) for r in group]
        parameters = f"{group[0]['model']['trainable_parameters']:,}"
        table.add_row(
            literal(name),
            *(_cell([value(r, key) for r in group], between) for key in shown),
            *(() if wide else (parameters, f"{statistics.fmean(seconds):.1f}")),
        )
        for other, found in compared(group).items():
            cells = [_cell([value(f, key) for f in found], between) for key in shown]
            table.add_row(f"  {literal(other)}", *cells, style="dim")
    return table


def _title(results: Sequence[dict[str, Any]]) -> str:
    seeds = max(len(group) for group in by_strategy(results).values())
    scenario = literal(results[0]["scenario"])
    tasks, classes = len(results[0]["tasks"]), len(results[0]["class_order"])
    plural = "" if tasks == 1 else "s"
    spread = f", mean of {seeds} seeds ± 95 % interval" if seeds > 1 else ""
    scored = "" if results[0]["scored_on"] == "test images" else f", on {results[0]['scored_on']}"
    return f"{scenario}: {tasks} task{plural}, {classes} classes, in percent{scored}{spread}"


def _left_out(results: Sequence[dict[str, Any]]) -> str:
    """Say what a wide table has no room for."""
    more = _probe_names(results)[_MOST_PROBES:]
    costs = "trained parameters, seconds"
    return f"also in result.json: {literal(', '.join([*more, costs]))}"


def compared(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return what the weights that runs were compared with reached, by their name."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        for name, other in ((result.get("merge") or {}).get("compared") or {}).items():
            found.setdefault(name, []).append(other)
    return found


def text_cell(text: str) -> str:
    """Return a name as a cell of CSV: a spreadsheet runs what begins as a formula does.

    Such a name gets an apostrophe in front, which spreadsheets take as "this is text".

    Example:
        >>> text_cell("=1+1"), text_cell("clipfit")
        ("'=1+1", 'clipfit')
    """
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\n")) else text


def comparison_csv(results: Sequence[dict[str, Any]], folders: Sequence[str]) -> str:
    """Return one line a run with all its metrics, and one for each it was compared with.

    Where the probes are what is asked for (protocol "transfer"), each has a column.
    """
    names = list(dict.fromkeys(name for r in results for name in r["metrics"]))
    if results[0].get("protocol") == "transfer":
        names += [_PROBE + name for name in _probe_names(results)]
    rows = []
    for r, folder in zip(results, folders, strict=True):
        found = {r["label"]: r}
        found |= {f"{r['label']} / {name}": others[0] for name, others in compared([r]).items()}
        for label, other in found.items():
            values = [value(other, name) for name in names]
            scenario, strategy = text_cell(r["scenario"]), text_cell(label)
            rows.append([scenario, strategy, r["seed"], *values, text_cell(folder)])
    return csv_text(["scenario", "strategy", "seed", *map(text_cell, names), "folder"], rows)


def modes_table(result: dict[str, Any], modes: Sequence[dict[str, Any]]) -> Table:
    """Return one row for every mode of a bank, in percent.

    Args:
        result: of the run that the bank belongs to.
        modes: what `commands.evaluate.ModeResult.summary` returns.
    """
    shown = columns([result])
    title = f"{literal(result['scenario'])}, bank of {literal(result['label'])}, percent"
    table = Table(title=title, **(_NARROW if len(shown) > _WIDE else {}))
    table.add_column("mode", overflow="fold")
    for title in [*shown.values(), "last, labels of\nthe chosen task", "sent to their\nown task"]:
        table.add_column(title, justify="right", overflow="fold")
    for mode in modes:
        settings = ", ".join(f"{key}={value}" for key, value in mode["settings"].items())
        chosen = mode.get("chosen_labels")
        table.add_row(
            literal(mode["mode"] + (f" ({settings})" if settings else "")),
            *(_cell([value(mode, key)]) for key in shown),
            _cell([chosen["metrics"]["last_accuracy"]] if chosen else [None]),
            _cell([mode["routed"][-1]] if "routed" in mode else [None]),
        )
    return table


def modes_csv(modes: Sequence[dict[str, Any]]) -> str:
    """Return one line a mode with all its metrics."""
    names = list(modes[0]["metrics"])
    rows = [
        [
            text_cell(mode["mode"]),
            *(mode["metrics"][name] for name in names),
            mode["chosen_labels"]["metrics"]["last_accuracy"] if "chosen_labels" in mode else None,
        ]
        for mode in modes
    ]
    last = "last_accuracy_labels_of_chosen_task"
    return csv_text(["mode", *map(text_cell, names), last], rows)
