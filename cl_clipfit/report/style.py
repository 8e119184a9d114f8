"""The look that all figures share."""

import io
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cl_clipfit.errors import printable
from cl_clipfit.runtime.lean_imports import any_backend
from cl_clipfit.storage.run_folder import stream_name, write_atomic

with any_backend():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

# Okabe and Ito's colour-blind safe palette, highest contrast first; markers differ as well.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

MARKERS = "osD^vPX"
LINES = ("-", "--", "-.", ":")
ZERO_SHOT = "zero-shot"
# What most figures show has a colour and a marker that no other of the first seven has.
_COLOURS = {
    "clipfit": 0, "mergetune": 1, "stack": 2, "full": 3, "lda": 4, "linear-head": 5, "coop": 6,
    "ranpac": 1, "vis": 3, "simplecil": 5,
}  # fmt: skip
PNG_DPI = 150

STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "svg.hashsalt": "cl_clipfit",
    "svg.fonttype": "path",
}

MAX_NAME_LENGTH = 200  # characters; longer names are cut


def plain_text(text: str) -> str:
    """Escape a name that matplotlib would read as TeX, and cut one that is too long."""
    text = printable(text)
    text = text if len(text) <= MAX_NAME_LENGTH else f"{text[:MAX_NAME_LENGTH]}..."
    return text.replace("$", r"\$")


def looks_of(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return colour, marker and line of each method; no two look the same.

    The colour is that of its name in every figure, whatever is beside it; marker and line depend on
    its settings, and on others only where they would be equal.

    Args:
        labels: name and settings of each method.
    """
    looks: dict[str, dict[str, Any]] = {}
    for label in labels:
        name, settings = re.match(r"([^: ]*)(.*)", label, re.DOTALL).groups()  # type: ignore[union-attr]
        number, variant = (zlib.crc32(text.encode()) if text else 0 for text in (name, settings))
        colour = PALETTE[_COLOURS.get(name, number % len(PALETTE))]
        own = list(_COLOURS).index(name) if name in _COLOURS else number // len(PALETTE)
        first = own + variant
        choices = (
            {"color": colour, "marker": MARKERS[n % len(MARKERS)], "linestyle": LINES[line]}
            for line in range(len(LINES))
            for n in range(first, first + len(MARKERS))
        )
        free = (look for look in choices if look not in looks.values())
        looks[label] = next(free, {"color": colour, "marker": "", "linestyle": "-"})
    if ZERO_SHOT in looks:
        looks[ZERO_SHOT] = {"color": "0.35", "marker": "o", "linestyle": "--"}
    return looks


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure in inches, which pyplot and its backend know nothing of."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write `path`.png and `path`.svg; the same figure gives the same bytes.

    The figure is laid out once: `savefig` would do it twice for each file, which takes seconds.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.dpi = PNG_DPI
    for kind, canvas, metadata in (
        ("png", FigureCanvasAgg, {"Software": None}),
        ("svg", FigureCanvasSVG, {"Date": None}),
    ):
        data = io.BytesIO()
        getattr(canvas(figure), f"print_{kind}")(data, metadata=metadata)
        write_atomic(path.with_name(f"{path.name}.{kind}"), data.getvalue())


def run_title(result: dict[str, Any]) -> str:
    """Return scenario and model of a run, for the title of its figures."""
    model = result["model"]
    stream = stream_name(result["scenario"], result.get("data", {}))
    names = f"{stream}, {model['architecture']} ({model['pretrained']})"
    return plain_text(names)
