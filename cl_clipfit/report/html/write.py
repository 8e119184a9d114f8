"""Write `report.html`: what there is to see of runs, in one file that needs no other."""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cl_clipfit._version import __version__
from cl_clipfit.errors import UserError
from cl_clipfit.report.html.figure_files import write_figures
from cl_clipfit.report.html.heat import MOST_COLUMNS, style_sheet
from cl_clipfit.report.html.legend import LIGHT
from cl_clipfit.report.html.parts import Protocol, protocol
from cl_clipfit.report.results import Results, by_protocol
from cl_clipfit.storage.files import write_atomic
from cl_clipfit.storage.manifest import adding, run_around
from cl_clipfit.storage.run_folder import REPORT


def write_report(
    results: Results, path: Path, *, mixed: bool = False, figures: Path | None = None
) -> Path:
    """Write the report of finished runs.

    Args:
        results: the runs; those of unlike protocols have a part of the page each.
        path: the file to write, or a folder, which gets a `report.html`.
        mixed: one part for all: they are of one command, and may differ in the class order.
        figures: a folder for every figure of the page as SVG and PNG.

    Returns:
        the file.

    Raises:
        UserError: there is no run, a run's files are damaged, or the file cannot be written.
    """
    if not results:
        raise UserError("there is no run to report")
    file = path / REPORT if path.is_dir() else path
    write_page([results] if mixed else by_protocol(results), file, figures)
    return file


def write_page(groups: Sequence[Results], file: Path, figures: Path | None = None) -> None:
    """Write the report of finished runs, with a part of the page for each group.

    Raises:
        UserError: the files of a run are damaged, or the page cannot be written.
    """
    protocols = [protocol(runs) for runs in groups]
    page, around = render(protocols, sum(map(len, groups))), run_around(file)
    with adding(around) if around else contextlib.nullcontext():
        write_atomic(file, page)
    if figures is not None:
        write_figures(protocols, figures)


def render(protocols: Sequence[Protocol], runs: int) -> str:
    """Return the report of so many runs as a page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("cl_clipfit.report", "html"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=StrictUndefined,
    )  # fmt: skip
    templates.filters |= {"subscripts": _subscripts, "columns": _beside}
    return templates.get_template("report.html.j2").render(
        protocols=protocols,
        heat_colours=style_sheet(),
        light=LIGHT,
        version=__version__,
        runs=runs,
    )


def _subscripts(formula: str) -> Any:
    """Return a formula whose indices, as in R_t,j and A_{j<t}, are set below the line."""
    from markupsafe import Markup, escape

    text = str(escape(formula))
    return Markup(re.sub(r"_(?:{([^}]*)}|(\w(?:,\w)*))", r"<sub>\1\2</sub>", text))


def _beside(columns: int) -> int:
    """Return how many tables of so many columns stand beside each other on a wide screen."""
    if columns > MOST_COLUMNS:  # pictures, whatever is in them
        return 2
    return 3 if columns <= 5 else 2 if columns <= 11 else 1
