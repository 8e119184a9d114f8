"""The table at the end of a command, and that of the modes of a bank."""

import statistics
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from cl_clipfit.report.baselines import MARK, below_baselines
from cl_clipfit.report.captions import PUBLISHED, captions
from cl_clipfit.report.columns import (
    MOST_PROBES,
    PROBE,
    WIDE,
    best_by_column,
    by_strategy,
    columns,
    compared,
    probe_names,
    value,
)
from cl_clipfit.report.display import literal
from cl_clipfit.report.fitted import FittedTable
from cl_clipfit.report.published import published_beside
from cl_clipfit.storage.run_folder import stream_name

_COSTS = ("trainable\nparameters", "seconds\nper run")
# Where there is no room for all columns: which of them go, the first of them first.
_DROPPED = (
    "probe_accuracy", "learning_accuracy", "joint_accuracy", "retention",
    "joint_retention", "forgetting_all_classes",
)  # fmt: skip
_NARROW: Any = {"box": box.SIMPLE_HEAD, "padding": 0, "show_edge": False}


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
    wide = len(shown) > WIDE  # intervals go below their means; rules and cost columns are dropped
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


def _header(title: str, wide: bool) -> str:
    return title.replace(" ", "\n") if wide else title


def _dropped(headers: dict[str, str]) -> list[str]:
    """Return the headers that go first where a table is too wide: probes, from the last one."""
    probes = [header for key, header in headers.items() if key.startswith(PROBE)]
    return [*reversed(probes), *(headers[key] for key in _DROPPED if key in headers)]


def _marked(text: str, best: bool) -> Text | str:
    """Return a cell; in bold if it is the best of its column."""
    return Text(text, style="bold") if best else text


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
    more = probe_names(results)[MOST_PROBES:]
    costs = "trainable parameters, seconds"
    return f"also in result.json: {literal(', '.join([*more, costs]))}"


def modes_table(result: dict[str, Any], modes: Sequence[dict[str, Any]]) -> Table:
    """Return one row per mode of a bank, in percent.

    Args:
        result: the run that the bank belongs to.
        modes: what `commands.evaluate.ModeResult.summary` returns.
    """
    shown = columns([result])
    title = f"{_stream(result)}, bank of {literal(result['label'])}, percent"
    narrow = len(shown) >= WIDE
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
