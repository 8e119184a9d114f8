"""Curves over tasks and the accuracy matrix, as reproducible PNG and SVG (no dates, no ids)."""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cl_clipfit.errors import UserError
from cl_clipfit.report.columns import by_strategy, columns, value
from cl_clipfit.report.display import remove_figure
from cl_clipfit.report.style import (
    STYLE,
    ZERO_SHOT,
    looks_of,
    new_figure,
    plain_text,
    run_title,
    save_figure,
)
from cl_clipfit.report.tables import confidence_interval, mean_of
from cl_clipfit.runtime.lean_imports import any_backend

with any_backend():
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

_ONE_TASK = ("base-to-novel", "transfer")  # protocols that usually have a single task
PANELS = {
    "accuracy": "accuracy over all classes seen (%)",
    "forgetting": "forgetting, all classes (points)",
    "retention": "retention on the probes (points)",
    "joint_retention": "joint retention (points)",
}


def _lines(axes: Axes, key: str, groups: dict[str, list[dict[str, Any]]]) -> None:
    looks, drawn = looks_of(groups), []
    for name, group in groups.items():
        rows = [r["curves"][key] for r in group if key in r["curves"]]
        if not rows:
            continue
        curves = np.array(rows, dtype=float)  # None becomes NaN
        keep = ~np.isnan(curves).all(0)
        steps, values = np.arange(curves.shape[1])[keep], curves[:, keep]
        mean = values.mean(0)
        axes.plot(steps, mean, **looks[name], markersize=4, linewidth=1.8, label=plain_text(name))
        if len(values) > 1:
            half = [confidence_interval(column.tolist()) for column in values.T]
            colour = looks[name]["color"]
            axes.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.15, lw=0)
        drawn.append(curves)
    axes.set_xlabel("tasks learned")
    axes.set_title(PANELS[key], fontsize=10, loc="left")
    axes.set_xlim(-0.2, max((curves.shape[1] for curves in drawn), default=1) - 0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _set_limits(axes, key, drawn)


def _set_limits(axes: Axes, key: str, drawn: Sequence[np.ndarray]) -> None:
    """Show all runs; a band of few seeds may be cut, so that it does not flatten the curves."""
    shown = [line.get_ydata() for line in axes.lines]
    values = np.concatenate([np.ravel(np.asarray(v, dtype=float)) for v in (*drawn, *shown)])
    values = values[~np.isnan(values)]
    if key == "accuracy":
        axes.set_ylim(max(0, values.min(initial=100) - 5), 101)
        return
    axes.axhline(0, color="0.4", linewidth=0.8, zorder=0)
    low, high = values.min(initial=0), values.max(initial=0)
    margin = 0.05 * (high - low) if high - low >= 2 else 5  # a nearly constant one must look flat
    axes.set_ylim(low - margin, high + margin)


def _zero_shot_line(axes: Axes, results: Sequence[dict[str, Any]]) -> None:
    """Draw the zero-shot model, the baseline to beat; of several class orders, the mean."""
    own = [r for r in results if r["strategy"] == ZERO_SHOT] or results
    first = {tuple(r.get("class_order", ())): r["curves"] for r in reversed(own)}
    # It may extend to tasks that are only tested.
    known = [curves["zero_shot"][: len(curves["accuracy"])] for curves in first.values()]
    curve = np.array(known, dtype=float).mean(0)
    style: Any = {"color": "0.35", "linestyle": "--", "linewidth": 1.4, "zorder": 1}
    valid = curve[~np.isnan(curve)]
    if len(valid) == 1:  # a line through one point is invisible
        axes.axhline(valid[0], label=ZERO_SHOT, **style)
    else:
        axes.plot(curve, label=ZERO_SHOT, **style)


def _matrix(axes: Axes, matrix: Sequence[Sequence[float | None]]) -> None:
    values = np.array(matrix, dtype=float)
    axes.grid(False)
    image = axes.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    if values.shape[1] <= 12:
        for t, j in np.argwhere(~np.isnan(values)):
            value = values[t, j]
            colour = "white" if value < 60 else "black"
            axes.text(j, t, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    every = 1 + max(values.shape) // 15
    columns = range(0, values.shape[1], every)
    axes.set_xticks(columns, [str(j + 1) for j in columns])
    axes.set_yticks(range(0, values.shape[0], every))
    axes.set_xlabel("test task")
    axes.set_ylabel("after training task")
    axes.set_title("accuracy among all classes (%)", fontsize=10, loc="left")
    axes.figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)


def _curve_names(results: Sequence[dict[str, Any]]) -> list[str]:
    values = {key: [v for r in results for v in r["curves"].get(key, ())] for key in PANELS}
    return [key for key in PANELS if any(v is not None for v in values[key])]


def plot_run(result: dict[str, Any], path: Path) -> None:
    """Draw a run's curves and its accuracy matrix over all classes."""
    with matplotlib.rc_context(STYLE):
        panels = _curve_names([result])
        many = len(panels) > 3
        figure = new_figure(7.2, 9 if many else 6)
        *axes, matrix = figure.subplot_mosaic("ab;cd;ee" if many else "ab;cd").values()
        for ax in axes[len(panels) :]:
            ax.remove()
        for ax, key in zip(axes, panels, strict=False):
            if key == "accuracy" and result["strategy"] != ZERO_SHOT:
                _zero_shot_line(ax, [result])
            _lines(ax, key, {result["label"]: [result]})
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=2, frameon=False)
        _matrix(matrix, result["all_classes_matrix"])
        figure.suptitle(
            f"{plain_text(result['label'])}, seed {result['seed']}: {run_title(result)}"
        )
        save_figure(figure, path)


def check_lengths(groups: Mapping[str, list[dict[str, Any]]]) -> None:
    """Refuse runs of a method whose curves differ in length between seeds.

    Raises:
        UserError: they do.
    """
    for name, (first, *others) in groups.items():
        for other in others:
            shared = PANELS.keys() & first["curves"].keys() & other["curves"].keys()
            if any(len(first["curves"][key]) != len(other["curves"][key]) for key in shared):
                raise UserError(
                    f"{name}: seed {other['seed']} has curves of a different length than seed"
                    f" {first['seed']}: repeat the runs with --fresh"
                )


def plot_comparison(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw `comparison_figure` as PNG and SVG; without values, remove an earlier command's figure.

    Raises:
        UserError: the curves of a strategy differ in length between seeds.
    """
    figure = comparison_figure(results)
    if figure is None:
        remove_figure(path)
        return
    with matplotlib.rc_context(STYLE):
        save_figure(figure, path)


def comparison_figure(results: Sequence[dict[str, Any]]) -> Figure | None:
    """Return the curves of several runs: the mean over seeds, and a band for its 95 % interval.

    A protocol with a single task has no curves: the columns of its table are drawn instead. None if
    no curve has a value.

    Raises:
        UserError: the curves of a strategy differ in length between seeds.
    """
    groups = by_strategy(results)
    if results[0].get("protocol") in _ONE_TASK and len(results[0]["curves"]["accuracy"]) == 2:
        with matplotlib.rc_context(STYLE):
            return _titled(_columns(groups), results)
    check_lengths(groups)
    trained = {name: group for name, group in groups.items() if name != ZERO_SHOT}
    panels = _curve_names(results)
    if not panels:
        return None
    with matplotlib.rc_context(STYLE):
        rows, columns = (2, 2) if len(panels) > 3 else (1, len(panels))
        figure = new_figure(3.1 * columns, 3.2 * rows)
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for ax, key in zip(axes, panels, strict=True):
            if key == "accuracy" and trained:
                _zero_shot_line(ax, results)
            _lines(ax, key, trained or groups)
        return _titled(figure, results)


def _titled(figure: Figure, results: Sequence[dict[str, Any]]) -> Figure:
    """Add the title and the legend."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    letters = 7 + max(map(len, labels))  # of the longest entry with its line; eleven to an inch
    ncols = min(6, max(1, int(11 * figure.get_figwidth() / letters)))
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, frameon=False)
    mean = mean_of(results)
    note = f"; mean and 95 % interval of {mean}" if mean else ""
    figure.suptitle(run_title(results[0]) + note)
    return figure


def _columns(groups: dict[str, list[dict[str, Any]]]) -> Figure:
    """Draw the accuracies of the table: one position per column, one marker per strategy."""
    results = [result for group in groups.values() for result in group]
    accuracies = {c: t for c, t in columns(results).items() if not c.endswith("retention")}
    titles = {c: t for c, t in accuracies.items() if any(value(r, c) is not None for r in results)}
    figure = new_figure(2.4 + 1.1 * len(titles), 3.4)
    axes = figure.subplots()
    looks = looks_of(groups)
    for index, (name, group) in enumerate(groups.items()):
        rows = np.array([[value(r, column) for column in titles] for r in group], dtype=float)
        middle = [statistics.mean(column.tolist()) for column in rows.T]  # exact of equal values
        half = [confidence_interval(column) if len(rows) > 1 else 0.0 for column in rows.T]
        places = np.arange(len(titles)) + 0.5 * ((index + 0.5) / len(groups) - 0.5)
        axes.errorbar(
            places, middle, half, label=plain_text(name), markersize=6,
            **{**looks[name], "linestyle": "none"},
        )  # fmt: skip
    axes.set_xticks(range(len(titles)), [plain_text(title) for title in titles.values()])
    axes.set_ylabel("accuracy (%)")
    values = [v for r in results for c in titles if (v := value(r, c)) is not None]
    axes.set_ylim(max(0, min(values, default=0) - 5), min(101, max(values, default=100) + 5))
    return figure


def by_tower(layers: Sequence[str]) -> dict[str, list[str]]:
    """Group layers by tower."""
    towers: dict[str, list[str]] = {"text tower": [], "image tower": []}
    for layer in layers:
        towers["image tower" if ".visual." in layer else "text tower"].append(layer)
    return {name: members for name, members in towers.items() if members}


def plot_changes(
    result: dict[str, Any],
    path: Path,
    changes: Sequence[Mapping[str, float]] | None = None,
    title: str = "parameter change",
    rows_are: str = "after task",
) -> None:
    """Draw how much the trained parameters of each layer changed, task by task.

    Args:
        result: of the run.
        path: of the figure, without its suffix.
        changes: one mapping per task, from layer to root mean square change; by default, the change
            from the pretrained values.
        title: of the figure.
        rows_are: label of the vertical axis.
    """
    changes = result["change_by_layer"] if changes is None else changes
    if not any(changes):
        return
    towers = by_tower(list(changes[-1]))
    widths = [3 + len(layers) for layers in towers.values()]
    upright = max(widths) > 9
    with matplotlib.rc_context(STYLE):
        figure = new_figure(3 + 0.3 * sum(widths), 4.2 if upright else 3.6)
        axes = figure.subplots(1, len(towers), squeeze=False, width_ratios=widths)
        for ax, (tower, layers) in zip(axes[0], towers.items(), strict=True):
            values = np.array([[task.get(layer, np.nan) for layer in layers] for task in changes])
            image = ax.imshow(values, vmin=0, cmap="viridis", aspect="auto")
            labels = [layer.rpartition(".")[2].removesuffix("_embedding") for layer in layers]
            ax.set_xticks(range(len(layers)), labels, rotation=90 if upright else 0)
            rows = range(0, len(changes), 1 + len(changes) // 15)
            ax.set_yticks(rows, [str(t + 1) for t in rows])
            ax.set_xlabel("layer (numbers are blocks)")
            ax.set_ylabel(rows_are)
            ax.set_title(tower, fontsize=10, loc="left")
            ax.grid(False)
            bar = figure.colorbar(image, ax=ax, fraction=0.08, pad=0.02)
            bar.set_label("root mean square change", fontsize=8)
        heading = (
            f"{title}: {plain_text(result['label'])}, seed {result['seed']}: {run_title(result)}"
        )
        letters = int(10 * figure.get_figwidth())  # that fit on a line
        figure.suptitle(textwrap.fill(heading, letters, break_on_hyphens=False))
        save_figure(figure, path)
