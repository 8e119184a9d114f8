"""Every figure of the page as files of its own, SVG and PNG, on white ground for a paper."""

import contextlib
import io
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from cl_clipfit.report.html.by_image import Gallery
from cl_clipfit.report.html.charts import Chart
from cl_clipfit.report.html.gallery_drawing import gallery_drawing
from cl_clipfit.report.html.heat import Heat
from cl_clipfit.report.html.heat_drawing import heat_drawing
from cl_clipfit.report.html.legend import LIGHT, Line
from cl_clipfit.report.html.parts import Figure, Protocol
from cl_clipfit.report.html.svg import MARGIN, Drawing, cut, document, text, text_width
from cl_clipfit.storage.files import write_atomic
from cl_clipfit.storage.manifest import adding, run_around
from cl_clipfit.storage.run_folder import file_name

_DPI = 216  # of a PNG: three by three dots for a pixel of the drawing
_SWATCH = 34, 12  # pixels
_LEGEND_ROW = 20
_BETWEEN = 18  # entries of the legend
_VARIABLE = re.compile(r"var\(--([\w-]+)\)")
_DRAWN = re.compile(r'<svg [^>]*?width="([\d.]+)" height="([\d.]+)"[^>]*>(.*)</svg>', re.DOTALL)


def write_figures(protocols: Sequence[Protocol], folder: Path) -> list[Path]:
    """Write every figure of a page; of several protocols, each has a folder of its own in it.

    Args:
        protocols: the parts of the page.
        folder: is created; files of the same names are replaced, others stay.

    Returns:
        the files, in the order of the page.

    Raises:
        UserError: a file cannot be written.
    """
    around = run_around(folder / "figure")
    with adding(around) if around else contextlib.nullcontext():
        return [
            file
            for protocol in protocols
            for name, figure in named_figures(protocol).items()
            for file in _write(
                figure, folder / (protocol.name if len(protocols) > 1 else "") / name
            )
        ]


def named_figures(protocol: Protocol) -> dict[str, Figure]:
    """Return the figures of a part of the page by the names of their files, without suffix."""
    named: dict[str, Figure] = {}
    taken: set[str] = set()  # as file systems see names that ignore case
    for figure in protocol.figures:
        name = file_name(figure.name)
        for number in range(2, len(taken) + 3):
            if name.casefold() not in taken:
                break
            name = f"{file_name(figure.name)}-{number}"
        taken.add(name.casefold())
        named[name] = figure
    return named


def figure_svg(figure: Figure) -> str:
    """Return a figure of the page as an SVG file: on white ground, without a title in sight."""
    match figure:
        case Heat():
            drawing = heat_drawing(figure)
        case Gallery():
            drawing = gallery_drawing(figure)
        case Chart():
            drawing = _with_legend(figure)
    return document(drawing, f"{figure.name}: {figure.title}", figure.alt)


def _write(figure: Figure, path: Path) -> tuple[Path, Path]:
    import vl_convert  # starts a JavaScript engine

    drawing = figure_svg(figure)
    svg, png = (path.with_name(f"{path.name}.{kind}") for kind in ("svg", "png"))
    write_atomic(svg, drawing)
    write_atomic(png, _opaque(vl_convert.svg_to_png(drawing, ppi=_DPI)))
    return svg, png


def _opaque(png: bytes) -> bytes:
    """Return a picture without transparency, which has a third of the bytes."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").save(small, "PNG", compress_level=4, dpi=(_DPI, _DPI))
    return small.getvalue()


def _with_legend(chart: Chart) -> Drawing:
    """Return a chart of the page with its legend below, in the colours of a light page."""
    found = _DRAWN.fullmatch(chart.svg)
    assert found is not None, "vl-convert draws one svg element"
    width, height = float(found[1]), float(found[2])
    legend = _legend(chart.lines, width)
    left = max(0.0, (width - legend.width) / 2)
    body = (
        f'<g>{found[3]}</g><g transform="translate({left:g},{height + MARGIN:g})">{legend.body}</g>'
    )
    body = body.replace(' font-family="system-ui, sans-serif"', "")  # the document has one
    body = _VARIABLE.sub(lambda name: LIGHT[name[1]], body).replace("currentColor", LIGHT["ink"])
    return Drawing(max(width, legend.width), height + MARGIN + legend.height, body)


def _legend(lines: Sequence[Line], room: float) -> Drawing:
    """Return the legend in as many columns as there is room for."""
    wide, tall = _SWATCH
    widths = [wide + 6 + text_width(cut(line.label)) + _BETWEEN for line in lines]
    for columns in range(len(lines), 0, -1):
        sizes = [max(widths[first::columns]) for first in range(columns)]
        if sum(sizes) - _BETWEEN <= room:
            break
    body = []
    for at, line in enumerate(lines):
        down, across = divmod(at, columns)
        x, middle = sum(sizes[:across]), (down + 0.5) * _LEGEND_ROW
        body.append(f'<g transform="translate({x:g},{middle - tall / 2:g})">{line.swatch}</g>')
        body.append(text(x + wide + 6, middle, cut(line.label), anchor="start"))
    rows = -(-len(lines) // columns)
    return Drawing(sum(sizes) - _BETWEEN, rows * _LEGEND_ROW, "".join(body))
