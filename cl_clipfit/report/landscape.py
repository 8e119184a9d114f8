"""Lines and planes between the solutions of a task, as two figures and a table."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from cl_clipfit.report.display import literal
from cl_clipfit.report.style import (
    MARKERS,
    PALETTE,
    STYLE,
    new_figure,
    plain_text,
    run_title,
    save_figure,
)
from cl_clipfit.runtime.lean_imports import any_backend

with any_backend():
    import matplotlib
    from matplotlib import patheffects
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator
    from matplotlib.transforms import Bbox

KINDS = ("train", "test")
SHORTEST_AXIS = {"loss": 0.1, "accuracy": 10.0}  # smaller ranges are widened, to look flat
LEVELS = 14
LOSS_RANGE = 2.0  # of a plane's colours, above its lowest loss; 1 is that of the worst solution
_HEADROOM = 0.3  # share of the loss axis that is left for the barriers
_SIDES = ("left", "center", "right")
# Positions of a label beside its marker: offset in points, horizontal and vertical alignment.
_PLACES: Any = [
    ((0, 7), "center", "bottom"), ((0, -7), "center", "top"),
    ((8, 0), "left", "center"), ((-8, 0), "right", "center"),
    ((0, 20), "center", "bottom"), ((0, -20), "center", "top"),
]  # fmt: skip


def lines_table(landscape: dict[str, Any], result: dict[str, Any]) -> Table:
    """Return one row per line: its barriers, and its loss and accuracy at both ends."""
    title = f"{result['label']}, seed {result['seed']}, task {landscape['task']}"
    table = Table(title=f"{literal(title)}: start to end")
    table.add_column("line")
    for kind in KINDS:
        table.add_column(f"barrier\n{kind}", justify="right")
    for kind in KINDS:
        table.add_column(f"loss\n{kind}", justify="right")
        table.add_column(f"accuracy (%)\n{kind}", justify="right")
    for name in _shown(landscape):
        lines = [landscape["lines"][kind][name] for kind in KINDS]
        ends = [
            f"{line[key][0]:z.{digits}f} to {line[key][-1]:z.{digits}f}"
            for line in lines
            for key, digits in (("loss", 3), ("accuracy", 1))
        ]
        table.add_row(name, *(f"{line['barrier']:z.3f}" for line in lines), *ends)
    return table


def _shown(landscape: dict[str, Any]) -> list[str]:
    """Return the names of the lines to show; in task 1, "previous" is the zero-shot solution."""
    names = list(landscape["lines"]["train"])
    return [name for name in names if landscape["task"] > 1 or not name.startswith("previous")]


def _legend(landscape: dict[str, Any], kind: str, result: dict[str, Any]) -> str:
    images, classes = landscape["images"][kind], landscape["classes"][kind]
    source = "training images" if kind == "train" else result["scored_on"]
    return f"{images} {source}, {classes} classes"


def _heading(landscape: dict[str, Any], result: dict[str, Any]) -> str:
    label = f"{result['label']}, seed {result['seed']}, task {landscape['task']}"
    return f"{plain_text(label)}: {run_title(result)}"


def widened(low: float, high: float, key: str) -> tuple[float, float]:
    """Widen the range of "loss" or "accuracy", so that a nearly constant one looks flat."""
    missing = max(0.0, SHORTEST_AXIS[key] - (high - low)) / 2
    low, high = low - missing, high + missing
    if key == "accuracy":
        shift = min(0.0, 100 - high) or max(0.0, -low)
        low, high = low + shift, high + shift
    return low, high


def _set_limits(axes: Axes, values: list[float], key: str) -> None:
    low, high = widened(min(values), max(values), key)
    size = high - low
    axes.set_ylim(low - 0.05 * size, high + (_HEADROOM if key == "loss" else 0.05) * size)


def plot_lines(landscape: dict[str, Any], result: dict[str, Any], path: Path) -> None:
    """Draw loss and accuracy along every line; the panels of a row share their axis.

    Args:
        landscape: the measurements of `landscape_command`.
        result: the run's `result.json`.
        path: of the figure, without its suffix.
    """
    names = _shown(landscape)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(max(5.6, 2.7 * len(names)), 5.4)
        axes = figure.subplots(2, len(names), squeeze=False, sharey="row", sharex="col")
        for row, key in enumerate(("loss", "accuracy")):
            drawn = [v for kind in KINDS for n in names for v in landscape["lines"][kind][n][key]]
            _set_limits(axes[row][0], drawn, key)
            axes[row][0].set_ylabel("cross-entropy" if key == "loss" else "accuracy (%)")
            for ax, name in zip(axes[row], names, strict=True):
                for index, kind in enumerate(KINDS):
                    _curve(
                        ax,
                        landscape["lines"][kind][name],
                        key,
                        index,
                        _legend(landscape, kind, result),
                    )
        for index, name in enumerate(names):
            start, end = name.split(" to ")
            axes[0][index].set_title(name, fontsize=10, loc="left")
            axes[1][index].set_xticks([0, 0.5, 1], [start, "midpoint", end])
            for tick, side in zip(axes[1][index].get_xticklabels(), _SIDES, strict=True):
                tick.set_horizontalalignment(
                    side
                )  # centred labels of neighbouring panels would touch
            for place, kind in enumerate(KINDS):
                barrier = landscape["lines"][kind][name]["barrier"]
                axes[0][index].text(
                    0.97, 0.97 - 0.09 * place, f"barrier {barrier:z.3f}", ha="right", va="top",
                    transform=axes[0][index].transAxes, fontsize=8, color=PALETTE[place],
                )  # fmt: skip
        handles, labels = axes[0][0].get_legend_handles_labels()
        columns = 3 if len(names) > 3 else 1
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
        figure.suptitle(_heading(landscape, result), fontsize=10)
        save_figure(figure, path)


def _curve(axes: Axes, line: dict[str, Any], key: str, index: int, label: str) -> None:
    values = line[key]
    width = 1.4 if index else 2.2  # if the curves coincide, both stay visible
    axes.plot(
        line["alpha"], values, color=PALETTE[index], marker=MARKERS[index], markersize=2.5 * width,
        linewidth=width, label=label,
    )  # fmt: skip
    straight = "straight line between the ends" if index else None  # one entry in the legend
    axes.plot([0, 1], [values[0], values[-1]], color="0.55", lw=0.8, zorder=1, label=straight)


def plot_plane(landscape: dict[str, Any], result: dict[str, Any], path: Path) -> None:
    """Draw training loss and test accuracy on the plane, with equal scales on both axes.

    Args:
        landscape: the measurements of `landscape_command`, with a plane.
        result: the run's `result.json`.
        path: of the figure, without its suffix.
    """
    plane = landscape["plane"]
    summary = {**landscape, "images": plane["images"]}
    with matplotlib.rc_context(STYLE):
        sides = [plane[side][-1] - plane[side][0] for side in "xy"]
        height = 1.6 + min(5.0, 4.0 * sides[1] / sides[0])
        figure = new_figure(10, height)
        axes = figure.subplots(1, 2, sharey=True)
        for ax, kind, key in zip(axes, KINDS, ("loss", "accuracy"), strict=True):
            ends = [line[key][i] for line in landscape["lines"][kind].values() for i in (0, -1)]
            _surface(ax, plane, kind, key, max(ends))
            title = "training loss" if key == "loss" else "test accuracy (%)"
            ax.set_title(f"{title}\n{_legend(summary, kind, result)}", fontsize=10, loc="left")
            ax.set_xlabel("towards the base method (1 = its distance from zero-shot)")
            _mark(ax, plane)
        axes[0].set_ylabel("orthogonal direction")
        off = [name for name in plane["points"] if name not in plane["spanned_by"]]
        note = "; hollow markers: projected onto the plane" if off else ""
        figure.suptitle(_heading(landscape, result) + note, fontsize=10)
        figure.draw_without_rendering()  # labels need the final layout
        for ax in axes:
            _label(ax, plane["points"])
        save_figure(figure, path)


def _surface(axes: Axes, plane: dict[str, Any], kind: str, key: str, largest: float) -> None:
    """Draw filled contours; `largest` is the largest value among the solutions."""
    values = np.array(plane[kind][key])
    low, high = float(values.min()), float(values.max())
    if key == "loss":  # a far corner with a huge loss would hide everything else
        high = min(high, low + max(SHORTEST_AXIS[key], LOSS_RANGE * (largest - low)))
    levels = MaxNLocator(LEVELS).tick_values(*widened(low, high, key))
    beyond = "max" if values.max() > levels[-1] else "neither"
    # Bright means good in both panels.
    colours = "viridis_r" if key == "loss" else "viridis"
    filled = axes.contourf(
        plane["x"], plane["y"], values, levels=levels, cmap=colours, extend=beyond
    )
    axes.set_aspect("equal")
    axes.grid(False)
    bar = axes.inset_axes((1.03, 0.0, 0.04, 1.0))
    axes.figure.colorbar(filled, cax=bar, ticks=MaxNLocator(6))
    bar.grid(False)


def _mark(axes: Axes, plane: dict[str, Any]) -> None:
    for index, (name, position) in enumerate(plane["points"].items()):
        inside = "white" if name in plane["spanned_by"] else "none"
        axes.plot(
            *position, marker=MARKERS[index], markersize=7, markeredgecolor="black",
            markerfacecolor=inside, linestyle="none",
        )  # fmt: skip


def _label(axes: Axes, points: dict[str, Any]) -> None:
    """Write each name beside its marker, in the first position where it overlaps nothing."""
    pixels = axes.transData.transform(list(points.values()))
    taken = [Bbox.from_extents(x - 9, y - 9, x + 9, y + 9) for x, y in pixels]
    outline = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    for index, (name, position) in enumerate(points.items()):
        others = taken[:index] + taken[index + 1 :]
        for offset, across, up in _PLACES:
            label = axes.annotate(
                name, position, xytext=offset, textcoords="offset points", fontsize=9,
                ha=across, va=up, path_effects=outline, in_layout=False,
            )  # fmt: skip
            box = label.get_window_extent()
            inside = axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
            if inside and not any(box.overlaps(other) for other in others):
                break
            if (offset, across, up) != _PLACES[-1]:
                label.remove()
        taken.append(box)
