"""The pieces of an SVG file: text, its width, and the document around a drawing."""

from dataclasses import dataclass
from xml.sax.saxutils import escape

from rich.cells import cell_len

from cl_clipfit.errors import printable
from cl_clipfit.report.html.legend import LIGHT

MARGIN = 8  # pixels around a drawing
TEXT = 13  # pixels, of titles and labels; vl-convert draws the charts' text as large
_LONGEST = 60  # characters of a name; longer ones are cut
# Widths of letters by their size in Helvetica, and in fonts of its measures.
_WIDTHS = dict.fromkeys("iljI.,:;!|'", 0.25) | dict.fromkeys("ftr()[]{}/\\-` ", 0.32)
_WIDTHS |= dict.fromkeys("mwMW%@", 0.86)
_CAPITAL, _OTHER, _FULL = 0.69, 0.556, 1.0
_SPARE = 1.1  # the reader's font may be wider
_FONTS = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Drawing:
    """SVG elements, and the size in pixels of what they draw."""

    width: float
    height: float
    body: str


def cut(name: str) -> str:
    """Return a name, cut if it is long."""
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…"


def text_width(name: str, size: float = TEXT) -> float:
    """Return about how wide a text is, in pixels; the reader's font decides."""
    return _SPARE * size * sum(map(_letter_width, name))


def _letter_width(letter: str) -> float:
    if cell_len(letter) > 1:  # of East Asian scripts
        return _FULL
    return _WIDTHS.get(letter, _CAPITAL if letter.isupper() else _OTHER)


def text(
    x: float, y: float, content: str, *, anchor: str = "middle", size: float = TEXT,
    colour: str = LIGHT["ink"], turned: int = 0,
) -> str:  # fmt: skip
    """Return a line of text.

    Args:
        x: position of its anchor.
        y: position of its middle.
        content: the text.
        anchor: which end is at x: "start", "middle" or "end".
        size: in pixels.
        colour: of the letters.
        turned: degrees clockwise around the position.
    """
    where = f'x="{x:g}" y="{y + 0.35 * size:g}"'  # `dominant-baseline` is not drawn everywhere
    turn = f' transform="rotate({turned} {x:g} {y:g})"' if turned else ""
    style = f'text-anchor="{anchor}" font-size="{size:g}" fill="{colour}"'
    return f"<text {where} {style}{turn}>{_escaped(content)}</text>"


def _escaped(content: str) -> str:
    """Return a text as XML, which has no control characters."""
    return escape(printable(content))


def rectangle(x: float, y: float, width: float, height: float, style: str) -> str:
    """Return a rectangle; `style` holds further attributes."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" {style}/>'


def document(drawing: Drawing, title: str, words: str) -> str:
    """Return a drawing as a file of its own on white ground, with a margin.

    Args:
        drawing: its upper left corner is the origin.
        title: what it shows.
        words: the same for readers who do not see it.
    """
    width, height = (round(side + 2 * MARGIN) for side in (drawing.width, drawing.height))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img"'
        f' font-family="{_FONTS}">\n'
        f"<title>{_escaped(title)}</title><desc>{_escaped(words)}</desc>\n"
        f'<rect width="{width}" height="{height}" fill="#fff"/>\n'
        f'<g transform="translate({MARGIN},{MARGIN})">{drawing.body}</g>\n</svg>\n'
    )
