"""`run.py report`: one page of finished runs, in one file that opens without a network."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cl_clipfit.commands.resume import check_output
from cl_clipfit.errors import UserError
from cl_clipfit.report.display import say
from cl_clipfit.report.results import load_results
from cl_clipfit.storage.run_folder import REPORT


def report(
    paths: Sequence[Path], out: Console, err: Console, *, output: Path | None = None,
    figures: Path | None = None,
) -> None:  # fmt: skip
    """Write the report of finished runs, with a part for each protocol.

    Args:
        paths: folders of runs, or folders that hold some.
        out: where the last lines go, which name what was written.
        err: where notes go.
        output: the file; default: `report.html` in the folder, or the one that holds all of them.
        figures: a folder for every figure of the page as SVG and PNG.

    Raises:
        UserError: no finished run is found, one is damaged, or the file cannot be written.
    """
    results = load_results(*paths)
    file = output or _folder(paths) / REPORT
    if file.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {file}: expected a file name that ends with .html")
    check_output(file.parent)
    if figures is not None:
        check_output(figures / "figure.svg")
    say(err, f"{len(results)} run{'s' if len(results) > 1 else ''}")
    try:
        results.write_report(file, figures=figures)
    except UserError:
        raise
    except Exception as error:  # a result from anywhere may hold anything
        if os.environ.get("CL_CLIPFIT_DEBUG"):
            raise
        raise UserError(
            f"{file}: these results cannot be shown ({type(error).__name__}: {error}): check each"
            " run with verify"
        ) from error
    if figures is not None:
        say(out, f"figures: {figures}")
    say(out, f"report: {file}")


def _folder(paths: Sequence[Path]) -> Path:
    """Return the only folder, or the one in which all of them are."""
    if len(paths) == 1:
        return paths[0]
    return Path(os.path.relpath(os.path.commonpath([path.resolve().parent for path in paths])))
