"""The look that all figures share."""

import io
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
