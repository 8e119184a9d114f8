"""A coloured table of the page as a drawing: cells, names of rows and columns, a colour bar."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from cl_clipfit.report.html.charts import round_step
from cl_clipfit.report.html.heat import Heat, cell_colours, data_url
from cl_clipfit.report.html.legend import LIGHT
from cl_clipfit.report.html.svg import TEXT, Drawing, cut, rectangle, text, text_width

_SMALL = 11  # pixels, of the numbers in cells
_ROW = 22  # height of a cell with a number
_MOST_ROWS = 40  # of a block; further rows stand beside it
_PICTURE = 420  # the longest side of a picture
_DOTS = 840  # the same in dots: where viewers smooth pictures, cells stay sharp
_GAP = 6  # between names and cells
_BAR = 12  # width of the colour bar
_BAR_HEIGHTS = 88, 260
_FRAME = f'fill="none" stroke="{LIGHT["rule"]}" stroke-width="0.8"'


@dataclass(frozen=True)
class _Place:
    """Where a block of cells is, and how large they are."""

    x: float
    y: float
    width: float  # of a cell
    height: float


def heat_drawing(heat: Heat) -> Drawing:
    """Return a table as a drawing; of many rows, some stand beside the others."""
    down, across = [*heat.corner.split(" / "), ""][:2]
    rows = len(heat.side)
    blocks = [range(rows)] if heat.picture else _blocks(rows)
    cell = _cell_size(heat)
    names = max(text_width(cut(name)) for name in heat.side) + _GAP
    slanted = _is_slanted(heat, cell[0])
    reach = 0.71 * max(text_width(cut(name)) for name in heat.head) - cell[0] / 2
    first = max(TEXT + _GAP + names, reach if slanted else 0)
    apart = cell[0] * len(heat.head) + 3 * _GAP + names
    body, below = [], 0.0
    for at, block in enumerate(blocks):
        place = _Place(first + at * apart, 0.0, *cell)
        body.append(_cells(heat, block, place))
        body.append(_row_names([heat.side[row] for row in block], place))
        bottom = place.height * len(block)
        body.append(_column_names(heat.head, place, bottom, slanted))
        below = max(below, bottom + _names_height(heat.head, slanted))
        if across:
            middle = place.x + place.width * len(heat.head) / 2
            body.append(text(middle, bottom + _names_height(heat.head, slanted) + 10, across))
    height = cell[1] * len(blocks[0])
    middle = max(height / 2, text_width(down) / 2)
    body.append(text(first - names - _GAP - TEXT / 2, middle, down, turned=-90))
    right = first + (len(blocks) - 1) * apart + cell[0] * len(heat.head)
    bar = _colour_bar(heat, right + 3 * _GAP, height)
    tall = max(below + (18 if across else 0), middle + text_width(down) / 2, bar.height)
    return Drawing(bar.width, tall, "\n".join([*body, bar.body]))


def _blocks(rows: int) -> list[range]:
    """Return the rows of each block of a table: as many in each, but the last."""
    count = -(-rows // _MOST_ROWS) if rows > _MOST_ROWS else 1
    size = -(-rows // count)
    return [range(start, min(start + size, rows)) for start in range(0, rows, size)]


def _cell_size(heat: Heat) -> tuple[float, float]:
    if heat.picture:
        return min(18.0, _PICTURE / len(heat.head)), min(18.0, _PICTURE / len(heat.side))
    values = [value for _, row in heat.rows for value, _ in row]
    longest = max((text_width(value, _SMALL) for value in values), default=0.0)
    return max(34.0 if len(heat.head) <= 12 else 24.0, longest + 6), _ROW


def _cells(heat: Heat, rows: range, place: _Place) -> str:
    width, height = place.width * len(heat.head), place.height * len(rows)
    frame = rectangle(place.x, place.y, width, height, _FRAME)
    if heat.picture:
        return _picture(heat.picture, place.x, place.y, width, height) + frame
    colours, drawn = cell_colours(), []
    for down, row in enumerate(rows):
        for across, (value, name) in enumerate(heat.rows[row][1]):
            if name not in colours:  # without a value
                continue
            ground, ink = colours[name]
            x, y = place.x + across * place.width, place.y + down * place.height
            drawn.append(rectangle(x, y, place.width, place.height, f'fill="{ground}"'))
            middle = x + place.width / 2, y + place.height / 2
            drawn.append(text(*middle, value, size=_SMALL, colour=ink))
    return "".join([f'<g shape-rendering="crispEdges">{"".join(drawn)}</g>', frame])


def _picture(url: str, x: float, y: float, width: float, height: float) -> str:
    """Return a picture with a dot for each cell, enlarged."""
    data = base64.b64decode(url.partition(",")[2])
    with Image.open(io.BytesIO(data)) as dots:
        times = max(1, _DOTS // max(dots.size))
        size = dots.width * times, dots.height * times
        large = data_url(dots.resize(size, Image.Resampling.NEAREST), optimize=False)
    where = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return (
        f'<image {where} preserveAspectRatio="none" style="image-rendering:pixelated"'
        f' xlink:href="{large}"/>'
    )


def _is_shown(at: int, name: str, step: int) -> bool:
    return int(name) % step == 0 if name.isdecimal() else at % step == 0


def _row_names(names: Sequence[str], place: _Place) -> str:
    step = round_step((TEXT + 2) / place.height)
    return "".join(
        text(place.x - _GAP, place.y + (at + 0.5) * place.height, cut(name), anchor="end")
        for at, name in enumerate(names)
        if _is_shown(at, name, step)
    )


def _is_slanted(heat: Heat, width: float) -> bool:
    """Return whether names of columns are wider than these, and are not numbers to thin out."""
    numbers = all(name.isdecimal() for name in heat.head)
    return not numbers and max(text_width(cut(name)) for name in heat.head) > width - 4


def _names_height(names: Sequence[str], slanted: bool) -> float:
    """Return how far below the cells the names of columns reach."""
    widest = max(text_width(cut(name)) for name in names)
    return _GAP + (0.71 * (widest + TEXT) if slanted else TEXT)


def _column_names(names: Sequence[str], place: _Place, bottom: float, slanted: bool) -> str:
    y = bottom + _GAP + TEXT / 2
    widest = max(text_width(name) for name in names)
    needed = TEXT + 3 if slanted else widest + 4
    step = round_step(needed / place.width)
    drawn = []
    for at, name in enumerate(names):
        x = place.x + (at + 0.5) * place.width
        if not (at % step == 0 if slanted else _is_shown(at, name, step)):
            continue
        if slanted and text_width(name) > place.width:
            drawn.append(text(x, y, cut(name), anchor="end", turned=-45))
        else:
            drawn.append(text(x, y, name))
    return "".join(drawn)


def _colour_bar(heat: Heat, x: float, beside: float) -> Drawing:
    """Return the colour bar at x, with some of its values and their unit."""
    low, high = _BAR_HEIGHTS
    height, long = min(max(beside, low), high), text_width(heat.unit)
    colours = [ground for ground, _ in cell_colours().values()][::-1]
    each = height / len(colours)
    body = [
        rectangle(x, at * each, _BAR, each, f'fill="{colour}" shape-rendering="crispEdges"')
        for at, colour in enumerate(colours)
    ]
    body.append(rectangle(x, 0, _BAR, height, _FRAME))
    digits = len(heat.scale[1].partition(".")[2])
    values = [f"{float(heat.scale[1]) * at / 4:.{digits}f}" for at in range(5)]
    for at, value in enumerate(values):
        y = height * (1 - at / 4)
        body.append(text(x + _BAR + 4, y, value, anchor="start", size=_SMALL))
    unit = x + _BAR + 4 + max(text_width(value, _SMALL) for value in values) + TEXT
    body.append(text(unit, max(height, long) / 2, heat.unit, turned=-90))
    return Drawing(unit + TEXT / 2, max(height, long), "".join(body))
