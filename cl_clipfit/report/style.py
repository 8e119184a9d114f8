"""How all figures look."""

import io
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cl_clipfit.errors import printable
from cl_clipfit.storage.run_folder import write_atomic

# Okabe and Ito's colour-blind safe palette, darkest contrasts first; markers tell lines apart too.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


MARKERS = "osD^vPX"


_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "svg.hashsalt": "cl_clipfit",
    "svg.fonttype": "path",
}


_LONGEST_NAME = 200  # characters that are drawn


def _plain(text: str) -> str:
    """Keep names from being read as TeX, and from having no end."""
    text = printable(text)
    text = text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}..."
    return text.replace("$", r"\$")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure in inches, which pyplot and its backend know nothing of."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write `path`.png and `path`.svg; the same figure gives the same bytes."""
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        data = io.BytesIO()
        figure.savefig(data, format=kind, dpi=150, metadata=metadata)
        write_atomic(path.with_name(f"{path.name}.{kind}"), data.getvalue())


def _title(result: dict[str, Any]) -> str:
    model = result["model"]
    names = f"{result['scenario']}, {model['architecture']} ({model['pretrained']})"
    return _plain(names)
