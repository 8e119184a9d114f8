"""Curves over tasks and the accuracy matrix, as reproducible PNG and SVG (no dates, no ids)."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cl_clipfit.errors import UserError
from cl_clipfit.report.display import remove_figure
from cl_clipfit.report.style import (
    MARKERS,
    PALETTE,
    STYLE,
    new_figure,
    plain_text,
    run_title,
    save_figure,
)
from cl_clipfit.report.tables import by_strategy, columns, value
from cl_clipfit.runtime.lean_imports import any_backend

with any_backend():
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

ZERO_SHOT = "zero-shot"
_ONE_TASK = ("base-to-novel", "transfer")  # protocols that usually have a single task
_PANELS = {
    "accuracy": "accuracy over all classes seen (%)",
    "forgetting": "forgetting, all classes (points)",
    "retention": "retention on the probes (points)",
    "joint_retention": "joint retention (points)",
}


def _lines(axes: Axes, key: str, groups: dict[str, list[dict[str, Any]]]) -> None:
    tasks = 0
    for index, (name, group) in enumerate(groups.items()):
        rows = [r["curves"][key] for r in group if key in r["curves"]]
        if not rows:
            continue
        curves = np.array(rows, dtype=float)  # None becomes NaN
        tasks = max(tasks, curves.shape[1] - 1)
        keep = ~np.isnan(curves).all(0)
        steps = np.arange(curves.shape[1])[keep]
        curves = curves[:, keep]
        colour = PALETTE[index % len(PALETTE)]
        marker = MARKERS[(index + index // len(PALETTE)) % len(MARKERS)]
        axes.plot(
            steps, curves.mean(0), color=colour, marker=marker,
            markersize=4, linewidth=1.8, label=plain_text(name),
        )  # fmt: skip
        if len(curves) > 1:
            axes.fill_between(steps, curves.min(0), curves.max(0), color=colour, alpha=0.15, lw=0)
    axes.set_xlabel("tasks learned")
    axes.set_title(_PANELS[key], fontsize=10, loc="left")
    axes.set_xlim(-0.2, tasks + 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if key == "accuracy":
        low = axes.get_ylim()[0]
        axes.set_ylim(max(0, low - 5), 101)
    else:
        axes.axhline(0, color="0.4", linewidth=0.8, zorder=0)
        low, high = axes.get_ylim()
        if high - low < 2:  # a nearly constant curve must look flat
            axes.set_ylim(-5, 5)


def _zero_shot_line(axes: Axes, results: Sequence[dict[str, Any]]) -> None:
    """Draw the zero-shot model, the baseline to beat."""
    curves = results[0]["curves"]  # its zero-shot curve may extend to tasks that are only tested
    curve = np.array(curves["zero_shot"][: len(curves["accuracy"])], dtype=float)
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
    values = {key: [v for r in results for v in r["curves"].get(key, ())] for key in _PANELS}
    return [key for key in _PANELS if any(v is not None for v in values[key])]


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


def _check_lengths(groups: Mapping[str, list[dict[str, Any]]]) -> None:
    for name, (first, *others) in groups.items():
        for other in others:
            shared = _PANELS.keys() & first["curves"].keys() & other["curves"].keys()
            if any(len(first["curves"][key]) != len(other["curves"][key]) for key in shared):
                raise UserError(
                    f"{name}: seed {other['seed']} has curves of a different length than seed"
                    f" {first['seed']}: repeat the runs with --fresh"
                )


def plot_comparison(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the curves of several runs: the mean over seeds, and a band from minimum to maximum.

    A protocol with a single task has no curves: the columns of its table are drawn instead. If no
    curve has a value, nothing is drawn, and the figure of an earlier command is removed.

    Raises:
        UserError: the curves of a strategy differ in length between seeds.
    """
    groups = by_strategy(results)
    if results[0].get("protocol") in _ONE_TASK and len(results[0]["curves"]["accuracy"]) == 2:
        with matplotlib.rc_context(STYLE):
            _save_compared(_columns(groups), results, path)
        return
    _check_lengths(groups)
    trained = {name: group for name, group in groups.items() if name != ZERO_SHOT}
    panels = _curve_names(results)
    if not panels:
        remove_figure(path)
        return
    with matplotlib.rc_context(STYLE):
        rows, columns = (2, 2) if len(panels) > 3 else (1, len(panels))
        figure = new_figure(3.1 * columns, 3.2 * rows)
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for ax, key in zip(axes, panels, strict=True):
            if key == "accuracy" and trained:
                _zero_shot_line(ax, results)
            _lines(ax, key, trained or groups)
        _save_compared(figure, results, path)


def _save_compared(figure: Figure, results: Sequence[dict[str, Any]], path: Path) -> None:
    """Add the title and the legend, and save."""
    seeds = max(len(group) for group in by_strategy(results).values())
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    note = f"; mean and range of {seeds} seeds" if seeds > 1 else ""
    figure.suptitle(run_title(results[0]) + note)
    save_figure(figure, path)


def _columns(groups: dict[str, list[dict[str, Any]]]) -> Figure:
    """Draw the accuracies of the table: one position per column, one marker per strategy."""
    results = [result for group in groups.values() for result in group]
    accuracies = {c: t for c, t in columns(results).items() if not c.endswith("retention")}
    titles = {c: t for c, t in accuracies.items() if any(value(r, c) is not None for r in results)}
    figure = new_figure(2.4 + 1.1 * len(titles), 3.4)
    axes = figure.subplots()
    for index, (name, group) in enumerate(groups.items()):
        rows = np.array([[value(r, column) for column in titles] for r in group], dtype=float)
        low, high = rows.min(0), rows.max(0)
        middle = rows.mean(0).clip(low, high)  # rounded, the mean of equal values is another one
        places = np.arange(len(titles)) + 0.5 * ((index + 0.5) / len(groups) - 0.5)
        axes.errorbar(
            places, middle, (middle - low, high - middle), label=plain_text(name), linestyle="none",
            color="0.35" if name == ZERO_SHOT else PALETTE[index % len(PALETTE)],
            marker=MARKERS[index % len(MARKERS)], markersize=6,
        )  # fmt: skip
    axes.set_xticks(range(len(titles)), [plain_text(title) for title in titles.values()])
    axes.set_ylabel("accuracy (%)")
    return figure


def _towers(layers: Sequence[str]) -> dict[str, list[str]]:
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
    towers = _towers(list(changes[-1]))
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
