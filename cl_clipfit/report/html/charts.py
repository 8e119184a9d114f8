"""Line charts as SVG that stands in a page: drawn by Vega-Lite when the report is written.

The page's style sheet sets their colours (`var(--c0)`, ...), so that they fit light and dark; a
point's values are its `<title>`, which browsers show under the pointer.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cl_clipfit.errors import printable
from cl_clipfit.report.html.legend import Line, Looks, colour_of, dash_of, lines_of, shape_of

_WIDTH, _HEIGHT = 400, 220  # pixels of the plotting area; the page scales the whole
_MOST_TICKS = 12
_CROWDED = 25  # positions beyond which lines are thinner
_POINT = re.compile(r'<path aria-label="([^"]*)"([^>]*)/>')
_GEOMETRY = re.compile(r' (?:d|transform|[xy]2?)="[^"]*"')
_NUMBER = re.compile(r"-?\d+\.\d{4,}")


@dataclass(frozen=True)
class Point:
    """A value of a chart.

    Attributes:
        label: the line that it is on.
        x: position; a name where the axis has names.
        y: value.
        text: what the pointer shows.
        half: half the width of the 95 % interval; 0 draws no band.
    """

    label: str
    x: float | str
    y: float
    text: str
    half: float = 0.0


@dataclass(frozen=True)
class Chart:
    """A chart for the page.

    Attributes:
        name: of its file, without a suffix.
        title: what it shows.
        svg: the drawing.
        lines: the legend of the lines in it.
        alt: the same in words, for readers who do not see it.
        head: titles of the columns of its table of numbers.
        rows: this table: the same numbers as text.
    """

    name: str
    title: str
    svg: str
    lines: Sequence[Line]
    alt: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def line_chart(
    name: str, title: str, points: Sequence[Point], looks: Looks, *, x: str, y: str,
    low: float | None = None, high: float | None = None,
) -> Chart:  # fmt: skip
    """Return a chart with a line for each label; positions are in the order of the points.

    Args:
        name: of its file, without a suffix.
        title: what it shows.
        points: all values.
        looks: colour, marker and dashes by label.
        x: title of the horizontal axis; positions are names if the first one is.
        y: title of the vertical axis.
        low: its lower end; default that of the values.
        high: its upper end.
    """
    drawn = {point.label for point in points}
    shown = {label: look for label, look in looks.items() if label in drawn}
    spec = _spec(points, shown, x, y, low, high)
    domain = {key: end for key, end in (("domainMin", low), ("domainMax", high)) if end is not None}
    spec["encoding"]["y"]["scale"] = {"zero": False, "nice": low is None, **domain}
    ends = [f"{label} ends at {_last(points, label).text.split(': ')[-1]}" for label in shown]
    told = f"{'; '.join(ends[:8])}{'; ...' if len(ends) > 8 else ''}"
    alt = printable(f"{title}, {y}, over {x}, a line per method: {told}.")
    return Chart(name, title, _svg(spec), lines_of(shown), alt, *_numbers(points, [*shown], x))


def _last(points: Sequence[Point], label: str) -> Point:
    return [point for point in points if point.label == label][-1]


def _numbers(
    points: Sequence[Point], labels: Sequence[str], x: str
) -> tuple[list[str], list[list[str]]]:
    """Return a table of the values: a column per line."""
    cells = {(p.label, p.x): f"{p.y:.4g}" + (f" ± {p.half:.3g}" if p.half else "") for p in points}
    places = list(dict.fromkeys(point.x for point in points))
    rows = [[str(at), *(cells.get((label, at), "-") for label in labels)] for at in places]
    return [x, *labels], rows


def _spec(
    points: Sequence[Point], looks: Looks, x: str, y: str, low: float | None, high: float | None
) -> dict[str, Any]:
    """Return the chart for Vega-Lite; lines are numbered, since their names may be anything."""
    number = {label: str(index) for index, label in enumerate(looks)}
    values = [
        {
            "line": number[p.label], "x": p.x, "y": p.y, "text": printable(p.text),
            "low": max(p.y - p.half, p.y - p.half if low is None else low),
            "high": min(p.y + p.half, p.y + p.half if high is None else high),
        }
        for p in points
    ]  # fmt: skip

    def scale(ordered: Iterable[Any]) -> dict[str, Any]:
        domain = {"domain": list(number.values()), "range": list(ordered)}
        return {"field": "line", "legend": None, "scale": domain}

    def sized(first: float, last: float) -> dict[str, Any]:
        """Let a line be thinner than those below it, so that of equal ones all are seen."""
        return {**scale([first, last]), "type": "nominal"}

    crowded = len({point.x for point in points}) > _CROWDED
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "line", "aria": False, "strokeJoin": "round"},
            "encoding": {
                "strokeDash": scale(map(dash_of, looks.values())),
                "strokeWidth": sized(3, 1.5) if crowded else sized(5, 1.8),
            },
        },
        {
            "mark": {"type": "point", "filled": True, "opacity": 1},
            "encoding": {
                "shape": scale(map(shape_of, looks.values())),
                "size": sized(30, 12) if crowded else sized(80, 35),
                "description": {"field": "text"},
            },
        },
    ]
    if any(point.half for point in points):
        ends = {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}}
        band = {"mark": {"type": "area", "opacity": 0.15, "aria": False}, "encoding": ends}
        layers.insert(0, band)
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": _WIDTH, "height": _HEIGHT, "background": None, "config": _CONFIG,
        "data": {"values": values}, "layer": layers,
        "encoding": {
            "x": _positions(points, x),
            "y": {"field": "y", "type": "quantitative", "title": y},
            "color": scale(map(colour_of, looks.values())),
        },
    }  # fmt: skip


def round_step(least: float) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, ... that is not below a number.

    Example:
        >>> round_step(0.2), round_step(2.1), round_step(60)
        (1, 5, 100)
    """
    power = 10 ** max(0, math.floor(math.log10(least)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least)


def _positions(points: Sequence[Point], title: str) -> dict[str, Any]:
    """Return the horizontal axis: names in order, counted things, or numbers."""
    places = list(dict.fromkeys(point.x for point in points))
    axis: dict[str, Any] = {"labelAngle": 0}
    if isinstance(places[0], str):
        axis["labelAngle"] = -45 if len(places) > 7 else 0
        return {"field": "x", "title": title, "type": "ordinal", "sort": places, "axis": axis}
    if all(float(place).is_integer() for place in places):
        step = round_step(len(places) / _MOST_TICKS)
        axis |= {"values": [at for at in sorted(places) if at % step == 0], "format": "d"}
    scale = {"zero": False, "nice": False}
    return {"field": "x", "title": title, "type": "quantitative", "axis": axis, "scale": scale}


_CONFIG = {
    "view": {"stroke": None},
    "font": "system-ui, sans-serif",
    "axis": {
        "labelColor": "currentColor", "titleColor": "currentColor", "gridColor": "var(--grid)",
        "domainColor": "var(--rule)", "tickColor": "var(--rule)", "labelFontSize": 13,
        "labelFlush": False,
        "titleFontSize": 13, "titleFontWeight": "normal",
        "titlePadding": 8,  # a reader's font may be wider than the one that is measured here
    },
}  # fmt: skip


def _hundredths(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"


def _svg(spec: dict[str, Any]) -> str:
    """Return a chart as SVG for a page, without what only a stand-alone file needs."""
    import vl_convert  # starts a JavaScript engine

    drawing: str = vl_convert.vegalite_to_svg(spec)
    drawing = _GEOMETRY.sub(lambda match: _NUMBER.sub(_hundredths, match[0]), drawing)
    drawing = _POINT.sub(r"<path\2><title>\1</title></path>", drawing)
    for attribute in ("role", "aria-roledescription", "aria-label", "aria-hidden"):
        drawing = re.sub(f' {attribute}="[^"]*"', "", drawing)
    drawing = re.sub(r"<path[^>]* (?:d=\"M0,0h0v0h0Z\"|display=\"none\")[^>]*/>", "", drawing)
    return drawing.replace("<svg ", '<svg role="img" aria-hidden="true" ', 1)
