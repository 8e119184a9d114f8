"""The charts of a report: curves over tasks, change by layer, lines between solutions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cl_clipfit.report.figures import PANELS, by_tower, check_lengths
from cl_clipfit.report.html.charts import Chart, Point, line_chart
from cl_clipfit.report.html.legend import Looks
from cl_clipfit.report.style import LINES, MARKERS, PALETTE, ZERO_SHOT
from cl_clipfit.report.tables import confidence_interval
from cl_clipfit.storage.files import read_bytes
from cl_clipfit.storage.result import Content

Groups = Mapping[str, list[Content]]  # results by label


def curve_charts(groups: Groups, looks: Looks) -> list[Chart]:
    """Return a chart for each curve that has values: the mean over seeds, with its interval.

    Raises:
        UserError: the curves of a method differ in length between seeds.
    """
    check_lengths(groups)
    charts = []
    for key, title in PANELS.items():
        points = [p for label, group in groups.items() for p in _curve(label, group, key)]
        if key == "accuracy" and ZERO_SHOT not in groups:
            first = next(iter(groups.values()))
            points += _curve(ZERO_SHOT, first, "zero_shot")
        if len({point.x for point in points}) > 1:
            low, high = _limits(key, [point.y for point in points])
            what, _, unit = title.rpartition(" (")
            quantity = f"{key.replace('_', ' ')} ({unit}"
            charts.append(
                line_chart(
                    key.replace("_", "-"), what, points, looks, x="tasks learned", y=quantity,
                    low=low, high=high,
                )
            )  # fmt: skip
    return charts


def _limits(key: str, values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the vertical axis; a curve that is nearly constant must look flat."""
    if key == "accuracy":
        return max(0.0, min(values) - 5), 100.0
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.05 * (high - low) if high - low >= 2 else 5.0
    return low - margin, high + margin


def _curve(label: str, group: Sequence[Content], key: str) -> list[Point]:
    """Return the points of a method: the mean over its runs after each task."""
    curves = [result["curves"][key] for result in group if key in result["curves"]]
    rows = len(group[0]["accuracy_matrix"])
    unit = " %" if key in ("accuracy", "zero_shot") else " points"
    points = []
    for task, values in enumerate(zip(*curves, strict=False)):
        if task < rows and all(value is not None for value in values):
            half = confidence_interval(values) if len(values) > 1 else 0.0
            spread = f" ± {half:.1f}" if len(values) > 1 else ""
            text = f"{label}, after task {task}: {fmean(values):z.1f}{spread}{unit}"
            points.append(Point(label, task, fmean(values), text, half))
    return points


def layer_charts(groups: Groups, looks: Looks) -> list[Chart]:
    """Return a chart for each tower: how much each layer has changed after the last task."""
    moved = {label: group for label, group in groups.items() if any(_last_change(group[0]))}
    orders = [list(_last_change(group[0])) for group in moved.values()]
    layers = list(dict.fromkeys(layer for order in orders for layer in order))
    charts = []
    for tower, members in by_tower(layers).items():
        points = []
        for layer in _in_order(members, orders):
            for label, group in moved.items():
                values = [c for r in group if (c := _last_change(r).get(layer)) is not None]
                if values:
                    name, mean = short_layer(layer), fmean(values)
                    points.append(Point(label, name, mean, f"{label}, {name}: {mean:.3g}"))
        charts.append(
            line_chart(
                layer_figure(tower), f"{tower} after the last task", points, looks,
                x=f"layer of the {tower} (numbers are blocks)", y="root mean square change",
            )
        )  # fmt: skip
    return charts


def layer_figure(tower: str) -> str:
    """Return the name of the figures of how much a tower's layers moved.

    Example:
        >>> layer_figure("text tower")
        'what-moved-text'
    """
    return f"what-moved-{tower.partition(' ')[0]}"


def _last_change(result: Content) -> dict[str, float]:
    return result["change_by_layer"][-1] if result["change_by_layer"] else {}


def short_layer(layer: str) -> str:
    """Return what tells a layer from others of its tower.

    Example:
        >>> short_layer("clip.visual.transformer.resblocks.3"), short_layer("clip.visual.proj")
        ('3', 'proj')
    """
    return layer.rpartition(".")[2].removesuffix("_embedding")


def _in_order(layers: Sequence[str], orders: Sequence[Sequence[str]]) -> list[str]:
    """Return a tower's layers as an image passes them; methods may have trained different ones.

    Args:
        layers: of the tower.
        orders: of each method, its layers in the model's order.
    """

    def place(layer: str) -> tuple[int, int]:
        if short_layer(layer).isdigit():
            return 1, int(short_layer(layer))
        ahead = (order[: order.index(layer)] for order in orders if layer in order)
        first = any(not _has_block(names, layers) for names in ahead)
        return (0 if first else 2), layers.index(layer)

    return sorted(layers, key=place)


def _has_block(names: Sequence[str], tower: Sequence[str]) -> bool:
    return any(short_layer(name).isdigit() and name in tower for name in names)


def landscapes(run: Path) -> list[Content]:
    """Return what `landscape` measured in a run's folder, by task; files of other content are left.

    Raises:
        UserError: a file cannot be read.
    """
    found = []
    for file in sorted(run.glob("landscape-task-*.json")):
        try:
            content = json.loads(read_bytes(file))
        except ValueError:
            continue
        if isinstance(content, dict) and {"task", "lines", "images", "classes"} <= content.keys():
            found.append(content)
    return found


def landscape_charts(landscape: Content, run: str) -> tuple[list[Chart], Looks]:
    """Return charts of loss and accuracy on the lines between solutions, and the looks of these.

    Args:
        landscape: content of `landscape-task-NNN.json`.
        run: what tells the run's figures from those of others.
    """
    lines = {
        name: line
        for name, line in landscape["lines"]["test"].items()
        if landscape["task"] > 1 or not name.startswith("previous")
    }
    looks: dict[str, dict[str, Any]] = {
        name: {"color": PALETTE[at], "marker": MARKERS[at], "linestyle": LINES[at % len(LINES)]}
        for at, name in enumerate(list(lines)[: len(PALETTE)])
    }
    charts = []
    for key, unit in (("loss", "cross-entropy"), ("accuracy", "accuracy (%)")):
        points = [
            Point(name, at, value, f"{name}, {at:.0%} of the way: {value:.4g}")
            for name, line in lines.items()
            if name in looks
            for at, value in zip(line["alpha"], line[key], strict=True)
        ]
        title = f"{key} on test images after task {landscape['task']}"
        x = "way from the first to the second solution"
        charts.append(line_chart(f"landscape-{key}-{run}", title, points, looks, x=x, y=unit))
    return charts, looks


def barriers(result: Content) -> tuple[list[str], list[list[str]]]:
    """Return a table of the barriers that a merging method measured: a row per task."""
    tasks = [task.get("barriers") or {} for task in (result.get("merge") or {}).get("tasks", ())]
    names = list(dict.fromkeys(name for task in tasks for name in task))
    rows = [
        [str(number), *(_number(task.get(name)) for name in names)]
        for number, task in enumerate(tasks, 1)
    ]
    return (["task", *names], rows) if names else ([], [])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:z.3f}"
