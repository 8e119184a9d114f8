"""How methods look in charts of the page: their colours, dashes and markers, and the legend."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cl_clipfit.report.style import LINES, MARKERS, PALETTE

Looks = Mapping[str, Mapping[str, Any]]  # of `style.looks_of`
# The variables of the style sheet on a light ground, which files of single figures have too.
LIGHT = {
    "paper": "#fff", "ink": "#1b1f24", "soft": "#5a636e", "grid": "#e3e6ea", "rule": "#9aa3ad",
    "link": "#0059a3", "good": "#00684a", "bad": "#a33c00", "zero-shot": "#595959",
    **{f"c{at}": colour for at, colour in enumerate(PALETTE)},
}  # fmt: skip

_MARKERS = {  # in a swatch; a shape without one is a line alone
    "circle": '<circle cx="17" cy="6" r="4"/>',
    "square": '<rect x="13.5" y="2.5" width="7" height="7"/>',
    "diamond": '<path d="M17 1L22 6L17 11L12 6Z"/>',
    "triangle-down": '<path d="M12.5 2H21.5L17 10Z"/>',
    "triangle-up": '<path d="M12.5 10H21.5L17 2Z"/>',
    "cross": '<path d="M15.5 1.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z"/>',
    "triangle-right": '<path d="M13 1.5V10.5L21 6Z"/>',
}
_SHAPES = ("circle", "square", "diamond", "triangle-down", "triangle-up", "cross", "triangle-right")
_DASHES = ([1, 0], [7, 3], [7, 2, 2, 2], [2, 2])


@dataclass(frozen=True)
class Line:
    """A method in the legend: its name, and how its lines look.

    Attributes:
        label: its name.
        colour: variable of the style sheet.
        dash: lengths of dashes and gaps, as SVG has them.
        shape: of its markers.
    """

    label: str
    colour: str
    dash: str
    shape: str

    @property
    def swatch(self) -> str:
        """Return a piece of the line with a marker as SVG, 34 by 12 pixels."""
        line = f'<path d="M1 6H33" fill="none" stroke="{self.colour}" stroke-width="2"'
        marker = _MARKERS.get(self.shape, "").replace("/>", f' fill="{self.colour}"/>')
        return f'{line} stroke-dasharray="{self.dash}"/>{marker}'


def colour_of(look: Mapping[str, Any]) -> str:
    """Return the variable of the style sheet that holds a method's colour."""
    colour = look["color"]
    return f"var(--c{PALETTE.index(colour)})" if colour in PALETTE else "var(--zero-shot)"


def dash_of(look: Mapping[str, Any]) -> list[int]:
    """Return a line's dashes in pixels, as SVG has them."""
    return _DASHES[LINES.index(look["linestyle"])]


def shape_of(look: Mapping[str, Any]) -> str:
    """Return a marker by the name that Vega has for it."""
    return _SHAPES[MARKERS.index(look["marker"])] if look["marker"] else "stroke"


def lines_of(looks: Looks) -> list[Line]:
    """Return the legend of methods, or of whatever lines are named after."""
    return [
        Line(label, colour_of(look), " ".join(map(str, dash_of(look))), shape_of(look))
        for label, look in looks.items()
    ]
