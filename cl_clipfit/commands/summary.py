"""What a command leaves beside its runs: the figure and the table of all, and the report."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from cl_clipfit.config.command import RunConfig
from cl_clipfit.errors import UserError
from cl_clipfit.report.csv_tables import comparison_csv
from cl_clipfit.report.display import drawing, tolerating
from cl_clipfit.report.results import Results
from cl_clipfit.runtime.progress import Progress
from cl_clipfit.storage.files import write_atomic
from cl_clipfit.storage.lock import hold_when_free
from cl_clipfit.storage.manifest import adding, run_around
from cl_clipfit.storage.run_folder import DIGITS, REPORT, file_name


def compare(config: RunConfig, results: Results, progress: Progress) -> None:
    """Draw the comparison of a command's runs, and write its table."""
    from cl_clipfit.report.figures import plot_comparison  # Matplotlib is slow to import

    contents = [result.content for result in results]
    folders = [result.path.name for result in results]
    figure = config.output / _comparison_name(results)
    with hold_when_free(config.output):  # the files of two commands must not mix
        for kind in ("csv", "png", "svg"):
            with contextlib.suppress(OSError):
                _comparison(config, results, kind).unlink()
        with drawing(figure, progress.warn):
            plot_comparison(contents, figure)
        try:
            write_atomic(_comparison(config, results, "csv"), comparison_csv(contents, folders))
        except UserError as error:  # the runs are done
            progress.warn(str(error))


def write_report(file: Path, groups: Sequence[Results], progress: Progress) -> None:
    """Write the page that shows a command's runs; without it, the command has succeeded too.

    Args:
        file: the page.
        groups: the runs; each group has a part of the page.
        progress: receives a warning if the page cannot be written.
    """
    done = False
    with tolerating(f"the report {file.name} is", progress.warn):
        from cl_clipfit.report.html.write import write_page  # slow to import

        write_page(groups, file)
        done = True
    if not done and file.exists():  # of an earlier command
        around = run_around(file)
        with (
            contextlib.suppress(OSError, UserError),
            adding(around) if around else contextlib.nullcontext(),
        ):
            file.unlink()


def written(config: RunConfig, results: Results) -> list[str]:
    """Return the lines that name the comparison and the report, as far as they were written."""
    files = [_comparison(config, results, kind) for kind in ("png", "csv")]
    found = [f"comparison: {file}" for file in files if file.exists()]  # no figure without numbers
    return [*found[:1], *named(report_file(config, results))]


def named(report: Path) -> list[str]:
    """Return the line that names a report, if there is one."""
    return [f"report: {report}"] if report.exists() else []


def report_file(config: RunConfig, results: Results) -> Path:
    """Return the page of a command: in its run's folder, or beside the folders of several."""
    if len(results) == 1:
        return results[0].path / REPORT
    name = _comparison_name(results).removesuffix("comparison")
    return config.output / f"{name}{REPORT}"


def _comparison_name(results: Results) -> str:
    """Return a name that no other data set's comparison has."""
    content = results[0].content
    name, digest = content["data"].get("name"), content["data"]["sha256"]
    data = f"-{file_name(name)}-{digest[:DIGITS]}" if name else ""
    return f"{content['scenario']}{data}-comparison"


def _comparison(config: RunConfig, results: Results, suffix: str) -> Path:
    """Return the file with one suffix that compares a command's runs."""
    return config.output / f"{_comparison_name(results)}.{suffix}"
