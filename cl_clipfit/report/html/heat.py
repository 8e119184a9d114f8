"""Tables of percentages whose cells are coloured, and pictures of those too large for a table."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

MOST_COLUMNS = 24  # or rows; beyond, a picture has a dot for each cell
_GREY = 0.179  # luminance on which black and white text are read equally well
LEVELS = 20  # colours of the style sheet, `.h0` to `.h20`


@dataclass(frozen=True)
class Heat:
    """A coloured table.

    Attributes:
        name: of its file, without a suffix.
        title: what it shows.
        unit: of its values, in a few words.
        corner: what rows and columns are.
        head: names of the columns.
        side: names of the rows.
        rows: the name of each row, and its cells as (text, class of the style sheet).
        picture: a data URL instead of rows, if the table is large; "" otherwise.
        alt: the picture in words.
        scale: the lowest and the highest colour as text.
    """

    name: str
    title: str
    unit: str
    corner: str
    head: Sequence[str]
    side: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    picture: str
    alt: str
    scale: tuple[str, str]


def heat(
    name: str, title: str, values: Any, rows: Sequence[str], columns: Sequence[str], *,
    corner: str, unit: str, top: float = 100.0, digits: int = 0, as_table: bool = False,
) -> Heat:  # fmt: skip
    """Return a table of values from 0 to `top`, with a colour for each.

    Args:
        name: of its file, without a suffix.
        title: what it shows.
        values: (rows, columns); NaN or None where there is nothing.
        rows: their names.
        columns: their names.
        corner: what rows and columns are, such as "after task / on task".
        unit: of the values, in a few words.
        top: the value of the last colour.
        digits: of the numbers in the cells.
        as_table: whatever its size, a table.
    """
    table = np.array(values, dtype=float)
    ends = (f"{0:.{digits}f}", f"{top:.{digits}f}")
    alt = (
        f"{title}: {len(rows)} rows and {len(columns)} columns ({corner}), {_range(table, digits)}"
    )
    if not as_table and max(table.shape) > MOST_COLUMNS:
        picture = _picture(table, top)
        return Heat(name, title, unit, corner, columns, rows, (), picture, alt, ends)
    body = [
        (row, [_cell(value, top, digits) for value in cells])
        for row, cells in zip(rows, table.tolist(), strict=True)
    ]
    return Heat(name, title, unit, corner, columns, rows, body, "", alt, ends)


def style_sheet() -> str:
    """Return the rules of the cells' colours: cividis, which looks alike to colour-blind readers.

    Example:
        >>> style_sheet().splitlines()[0]
        '.h0{background:#00224e;color:#fff}'
    """
    return "\n".join(f".{n}{{background:{a};color:{b}}}" for n, (a, b) in cell_colours().items())


def cell_colours() -> dict[str, tuple[str, str]]:
    """Return the colours of a cell and of the text in it by class of the style sheet.

    Example:
        >>> cell_colours()["h20"]
        ('#fee838', '#000')
    """
    colours = {}
    for level in range(LEVELS + 1):
        red, green, blue = _colour(level / LEVELS)
        text = "#fff" if luminance(red, green, blue) < _GREY else "#000"
        colours[f"h{level}"] = f"#{red:02x}{green:02x}{blue:02x}", text
    return colours


def luminance(red: int, green: int, blue: int) -> float:
    """Return the relative luminance of a colour, from 0 to 1 (WCAG 2.2).

    Example:
        >>> luminance(0, 0, 0), round(luminance(255, 255, 255), 6)
        (0.0, 1.0)
    """
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (red / 255, green / 255, blue / 255)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _colour(share: float) -> tuple[int, int, int]:
    from matplotlib import colormaps

    red, green, blue, _ = colormaps["cividis"](share)
    return round(255 * red), round(255 * green), round(255 * blue)


def _cell(value: float, top: float, digits: int) -> tuple[str, str]:
    if np.isnan(value):
        return "", "none"
    level = round(LEVELS * min(max(value / top if top else 0.0, 0.0), 1.0))
    return f"{value:z.{digits}f}", f"h{level}"


def _range(table: np.ndarray, digits: int) -> str:
    known = table[~np.isnan(table)]
    if not known.size:
        return "without a value"
    return f"values from {known.min():.{digits}f} to {known.max():.{digits}f}"


def _picture(table: np.ndarray, top: float) -> str:
    """Return a PNG with a dot for each cell, as a data URL; cells without a value are clear."""
    from matplotlib import colormaps

    colours = colormaps["cividis"](np.clip(np.nan_to_num(table) / (top or 1), 0, 1), bytes=True)
    colours[np.isnan(table)] = 0
    return data_url(Image.fromarray(colours))


def data_url(image: Image.Image, *, optimize: bool = True) -> str:
    """Return an image as a PNG inside a URL."""
    data = io.BytesIO()
    image.save(data, "PNG", optimize=optimize)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
