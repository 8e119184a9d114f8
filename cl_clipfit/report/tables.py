"""The table at the end of a command and its CSV; the protocol determines the columns."""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from cl_clipfit.errors import printable
from cl_clipfit.report.baselines import MARK, below_baselines
from cl_clipfit.report.captions import PUBLISHED, captions
from cl_clipfit.report.display import literal
from cl_clipfit.report.fitted import FittedTable, best_of, means_of
from cl_clipfit.report.published import published_beside
from cl_clipfit.storage.files import csv_text
from cl_clipfit.storage.run_folder import stream_name

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
_COSTS = ("trainable\nparameters", "seconds\nper run")
ASKED = "asked_metrics"  # key in a result's content: titles of the metrics asked for, by name
LOWER = "lower_is_better"  # key in a result's content: names of metrics
_PROBE = "probe: "  # prefix of a column that is a probe's last accuracy, not a metric
# Where there is no room for all columns: which of them go, the first of them first.
_DROPPED = (
    "probe_accuracy", "learning_accuracy", "joint_accuracy", "retention",
    "joint_retention", "forgetting_all_classes",
)  # fmt: skip
_MOST_PROBES = 6
_WIDE = 6  # with more columns, intervals go below their means; rules and cost columns are dropped
_NARROW: Any = {"box": box.SIMPLE_HEAD, "padding": 0, "show_edge": False}


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
    names = _probe_names(results)[:_MOST_PROBES]
    letters = 12 if len(names) < _WIDE - 2 else 10
    probes = {_PROBE + n: "\n".join(map(literal, textwrap.wrap(n, letters))) for n in names}
    return {
        "last_accuracy": "last\naccuracy",
        "probe_accuracy": "mean over\nprobes",
        **probes,
        "retention": "retention",
        **joint,
    }


def _probe_names(results: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result["probes"]))


def value(scored: dict[str, Any], column: str) -> float | None:
    """Return the value of a column, for a result or any other mapping with metrics and probes."""
    if column.startswith(_PROBE):
        accuracies = scored["probes"].get(column.removeprefix(_PROBE))
        return accuracies[-1] if accuracies else None
    return scored["metrics"].get(column)


def by_strategy(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group results by strategy and its settings, in order of appearance."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["label"], []).append(result)
    return groups


def cell(values: Sequence[float | None], between: str = " ", deviation: bool = False) -> str:
    """Return the mean and, of several values, half the width of its 95 % interval; "-" of none.

    Args:
        values: of the runs.
        between: what stands between mean and interval.
        deviation: add the standard deviation (n - 1) of the values.

    Example:
        >>> cell([71.0, 73.0], deviation=True)
        '72.0 ± 12.7 (1.4)'
    """
    measured = [v for v in values if v is not None]
    if not measured:
        return "-"
    mean = f"{statistics.fmean(measured):z.1f}"
    if len(measured) == 1:
        return mean
    spread = f" ({statistics.stdev(measured):.1f})" if deviation else ""
    return f"{mean}{between}± {confidence_interval(measured):.1f}{spread}"


def confidence_interval(values: Sequence[float]) -> float:
    """Return half the width of the 95 % confidence interval of the mean, after Student.

    Example:
        >>> round(confidence_interval([1.0, 2.0, 3.0, 4.0, 5.0]), 3)
        1.963
    """
    from scipy.stats import t

    n = len(values)
    return float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5


def results_table(results: Sequence[dict[str, Any]], deviation: bool = False) -> Table:
    """Return one row per strategy: mean (± 95 % confidence interval) over its seeds, in percent.

    A method that is compared with other weights has a row for each of them below its own. With
    `deviation`, the standard deviation stands beside the interval.
    """
    shown = columns(results)
    wide = len(shown) > _WIDE
    between = "\n" if wide else " "
    groups = by_strategy(results)
    below = below_baselines(groups)
    others = published_beside(results)
    notes = [captions(groups, others), *([_left_out(results)] if wide else [])]
    table = FittedTable(
        title=title_of(results, deviation),
        caption="\n".join(filter(None, notes)),
        caption_justify="left",
        **(_NARROW if wide else {}),
    )
    table.add_column("strategy", overflow="fold")
    headers = {key: _header(title, wide) for key, title in shown.items()}
    for header in headers.values():
        table.add_column(header, justify="right", overflow="fold")
    table.drops = [*_COSTS, *_dropped(headers)]
    best = best_by_column(results)
    if not wide:
        for title in _COSTS:
            table.add_column(title, justify="right", overflow="fold")
    for name, group in groups.items():
        seconds = [sum(map(sum, r["timings"].values())) for r in group]
        parameters = f"{group[0]['model']['trainable_parameters']:,}"
        table.add_row(
            literal(f"{name} {MARK}" if name in below else name),
            *(
                _marked(cell([value(r, key) for r in group], between, deviation), name in best[key])
                for key in shown
            ),
            *(() if wide else (parameters, f"{statistics.fmean(seconds):.1f}")),
        )
        for other, scored in compared(group).items():
            cells = [cell([value(f, key) for f in scored], between, deviation) for key in shown]
            table.add_row(f"  {literal(other)}", *cells, style="dim")
    for paper in others:
        cells = [cell([paper.metrics.get(key)]) for key in shown]
        table.add_row(f"{PUBLISHED} {literal(paper.strategy)}", *cells, style="dim italic")
    return table


def best_by_column(results: Sequence[dict[str, Any]]) -> dict[str, set[str]]:
    """Return the methods with the best mean in each column of the results' table."""
    less = {"forgetting_all_classes", "forgetting", *results[0].get(LOWER, ())}
    groups = by_strategy(results)
    return {key: best_of(values_of(groups, key), key in less) for key in columns(results)}


def _header(title: str, wide: bool) -> str:
    return title.replace(" ", "\n") if wide else title


def _dropped(headers: dict[str, str]) -> list[str]:
    """Return the headers that go first where a table is too wide: probes, from the last one."""
    probes = [header for key, header in headers.items() if key.startswith(_PROBE)]
    return [*reversed(probes), *(headers[key] for key in _DROPPED if key in headers)]


def _marked(text: str, best: bool) -> Text | str:
    """Return a cell; in bold if it is the best of its column."""
    return Text(text, style="bold") if best else text


def values_of(
    groups: Mapping[str, Sequence[dict[str, Any]]], column: str
) -> dict[str, list[float | None]]:
    """Return the values of a column, of every run of each group."""
    return {name: [value(r, column) for r in group] for name, group in groups.items()}


def best_method(groups: Mapping[str, Sequence[dict[str, Any]]], column: str) -> str:
    """Return the method with the highest mean in a column; of equal ones the first."""
    means = means_of(values_of(groups, column))
    return max(groups, key=lambda name: float("-inf") if (m := means[name]) is None else m)


def title_of(results: Sequence[dict[str, Any]], deviation: bool = False) -> str:
    """Return what the table shows: stream, tasks, classes, what was scored, seeds, spread."""
    scenario = _stream(results[0])
    tasks, classes = len(results[0]["tasks"]), len(results[0]["class_order"])
    plural = "" if tasks == 1 else "s"
    mean = mean_of(results)
    spread = f", mean of {mean} ± 95 % interval" if mean else ""
    spread += " (standard deviation)" if mean and deviation else ""
    scored = "" if results[0]["scored_on"] == "test images" else f", on {results[0]['scored_on']}"
    return f"{scenario}: {tasks} task{plural}, {classes} classes, in percent{scored}{spread}"


def mean_of(results: Sequence[dict[str, Any]]) -> str:
    """Return what the numbers of a table are the mean of, such as "3 seeds"; "" of single runs."""
    runs = max(len(group) for group in by_strategy(results).values())
    orders = len({tuple(result.get("class_order", ())) for result in results})
    if runs == 1:
        return ""
    return f"{runs} seeds" if orders == 1 else f"{runs} runs in {orders} class orders"


def _stream(result: dict[str, Any]) -> str:
    return literal(stream_name(result["scenario"], result.get("data", {})))


def _left_out(results: Sequence[dict[str, Any]]) -> str:
    """Return the caption that names what a wide table omits."""
    more = _probe_names(results)[_MOST_PROBES:]
    costs = "trainable parameters, seconds"
    return f"also in result.json: {literal(', '.join([*more, costs]))}"


def compared(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the scores of the weights that the runs are compared with, by name."""
    others: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        for name, other in ((result.get("merge") or {}).get("compared") or {}).items():
            others.setdefault(name, []).append(other)
    return others


def text_cell(text: str) -> str:
    """Return a name as a CSV cell that no spreadsheet runs as a formula.

    A name that starts like a formula gets a leading apostrophe, which marks it as text.

    Example:
        >>> text_cell("=1+1"), text_cell("clipfit")
        ("'=1+1", 'clipfit')
    """
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\n")) else text


def comparison_csv(results: Sequence[dict[str, Any]], folders: Sequence[str]) -> str:
    """Return one line per run with all its metrics, and one for each model it is compared with.

    In the protocol "transfer", every probe has a column.
    """
    names = list(dict.fromkeys(name for r in results for name in r["metrics"]))
    if results[0].get("protocol") == "transfer":
        names += [_PROBE + name for name in _probe_names(results)]
    rows = []
    for r, folder in zip(results, folders, strict=True):
        scored = {r["label"]: r}
        scored |= {f"{r['label']} / {name}": others[0] for name, others in compared([r]).items()}
        for label, other in scored.items():
            values = [value(other, name) for name in names]
            scenario, strategy = text_cell(r["scenario"]), text_cell(label)
            rows.append([scenario, strategy, r["seed"], *values, text_cell(folder)])
    return csv_text(["scenario", "strategy", "seed", *map(text_cell, names), "folder"], rows)


def modes_table(result: dict[str, Any], modes: Sequence[dict[str, Any]]) -> Table:
    """Return one row per mode of a bank, in percent.

    Args:
        result: the run that the bank belongs to.
        modes: what `commands.evaluate.ModeResult.summary` returns.
    """
    shown = columns([result])
    title = f"{_stream(result)}, bank of {literal(result['label'])}, percent"
    narrow = len(shown) >= _WIDE
    table = Table(
        title=title,
        caption=captions({result["label"]: [result]}),
        caption_justify="left",
        **(_NARROW if narrow else {}),
    )
    table.add_column("mode", overflow="fold")
    for title in [*shown.values(), "last, labels of\nchosen task", "routed to\ncorrect task"]:
        words = title.replace(" ", "\n") if narrow else title
        table.add_column(words, justify="right", overflow="fold")
    for mode in modes:
        settings = ", ".join(f"{key}={value}" for key, value in mode["settings"].items())
        chosen = mode.get("chosen_labels")
        table.add_row(
            literal(mode["mode"] + (f" ({settings})" if settings else "")),
            *(cell([value(mode, key)]) for key in shown),
            cell([chosen["metrics"]["last_accuracy"]] if chosen else [None]),
            cell([mode["routed"][-1]] if "routed" in mode else [None]),
        )
    return table


def modes_csv(modes: Sequence[dict[str, Any]]) -> str:
    """Return one line per mode with all its metrics."""
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
