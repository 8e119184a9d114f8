"""The table at the end of a command, and its CSV."""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from cl_clipfit.runs import csv_text

COLUMNS = {
    "average_accuracy": "average\naccuracy",
    "last_accuracy": "last\naccuracy",
    "learning_accuracy": "learning\naccuracy",
    "forgetting_all_classes": "forgetting\n(all classes)",
    "retention": "retention",
}


def by_strategy(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group results by strategy and its settings, in order of appearance."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["label"], []).append(result)
    return groups


def _cell(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    mean = f"{statistics.fmean(known):.1f}"
    return f"{mean} ± {confidence_interval(known):.1f}" if len(known) > 1 else mean


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
    seeds = max(len(group) for group in by_strategy(results).values())
    scenario = escape(results[0]["scenario"])
    tasks, classes = len(results[0]["tasks"]), len(results[0]["class_order"])
    spread = f", mean of {seeds} seeds ± 95 % interval" if seeds > 1 else ""
    scored = "" if results[0]["scored_on"] == "test images" else f", on {results[0]['scored_on']}"
    title = f"{scenario}: {tasks} tasks, {classes} classes, in percent{scored}{spread}"
    table = Table(title=title)
    table.add_column("strategy", overflow="fold", min_width=10)
    for title in COLUMNS.values():
        table.add_column(title, justify="right")
    table.add_column("trained\nparameters", justify="right")
    table.add_column("seconds\na run", justify="right")
    for name, group in by_strategy(results).items():
        seconds = [sum(map(sum, r["timings"].values())) for r in group]
        table.add_row(
            escape(name),
            *(_cell([r["metrics"][key] for r in group]) for key in COLUMNS),
            f"{group[0]['model']['trainable_parameters']:,}",
            f"{statistics.fmean(seconds):.1f}",
        )
        for other, metrics in compared(group).items():
            cells = [_cell([m[key] for m in metrics]) for key in COLUMNS]
            table.add_row(f"  {escape(other)}", *cells, style="dim")
    return table


def compared(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the metrics of the weights that runs were compared with, by their name."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        for name, other in ((result.get("merge") or {}).get("compared") or {}).items():
            found.setdefault(name, []).append(other["metrics"])
    return found


def comparison_csv(results: Sequence[dict[str, Any]], folders: Sequence[str]) -> str:
    """Return one line a run with all its metrics, and one for each it was compared with."""
    names = list(results[0]["metrics"])
    rows = []
    for r, folder in zip(results, folders, strict=True):
        found = {r["label"]: r["metrics"]}
        found |= {f"{r['label']} / {name}": metrics[0] for name, metrics in compared([r]).items()}
        for label, metrics in found.items():
            rows.append([r["scenario"], label, r["seed"], *(metrics[n] for n in names), folder])
    return csv_text(["scenario", "strategy", "seed", *names, "folder"], rows)


def modes_table(result: dict[str, Any], modes: Sequence[dict[str, Any]]) -> Table:
    """Return one row for every mode of a bank, in percent.

    Args:
        result: of the run that the bank belongs to.
        modes: what `commands.evaluate.ModeResult.summary` returns.
    """
    table = Table(title=f"{escape(result['scenario'])}, bank of {escape(result['label'])}, percent")
    table.add_column("mode", overflow="fold", min_width=8)
    for title in [*COLUMNS.values(), "last, labels of\nthe chosen task", "sent to their\nown task"]:
        table.add_column(title, justify="right")
    for mode in modes:
        settings = ", ".join(f"{key}={value}" for key, value in mode["settings"].items())
        chosen = mode.get("chosen_labels")
        table.add_row(
            mode["mode"] + (f" ({settings})" if settings else ""),
            *(_cell([mode["metrics"][key]]) for key in COLUMNS),
            _cell([chosen["metrics"]["last_accuracy"]] if chosen else [None]),
            _cell([mode["routed"][-1]] if "routed" in mode else [None]),
        )
    return table


def modes_csv(modes: Sequence[dict[str, Any]]) -> str:
    """Return one line a mode with all its metrics."""
    names = list(modes[0]["metrics"])
    rows = [
        [
            mode["mode"],
            *(mode["metrics"][name] for name in names),
            mode["chosen_labels"]["metrics"]["last_accuracy"] if "chosen_labels" in mode else None,
        ]
        for mode in modes
    ]
    return csv_text(["mode", *names, "last_accuracy_labels_of_chosen_task"], rows)
