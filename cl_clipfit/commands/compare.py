"""`run.py compare`: tables, curves and paired differences of finished runs."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from cl_clipfit.errors import UserError, nearest
from cl_clipfit.report.columns import asked_metrics, best_method, by_strategy, columns
from cl_clipfit.report.csv_tables import comparison_csv
from cl_clipfit.report.display import ConsoleDisplay, drawing, literal, say
from cl_clipfit.report.grid import grid, latex, markdown
from cl_clipfit.report.kept_metrics import without_predictions
from cl_clipfit.report.paired import differences
from cl_clipfit.report.results import (
    Results,
    by_protocol,
    load_results,
    protocol_name,
    protocol_of,
)
from cl_clipfit.report.tables import results_table
from cl_clipfit.storage.files import write_atomic
from cl_clipfit.storage.result import Result

_CODE = re.compile(r" \([0-9a-f]{4}\)$")  # of `load_results`
Form = Literal["table", "markdown", "latex", "csv"]


def compare(
    paths: Sequence[Path], out: Console, err: Console, *, form: Form = "table",
    mixed: bool = False, against: str | None = None, names: Sequence[str] = (),
    metrics: Sequence[str] = (), std: bool = False, output: Path | None = None,
) -> None:  # fmt: skip
    """Show runs side by side, those of each protocol in a table of their own.

    Args:
        paths: folders of runs, or folders that hold some.
        out: where the tables go.
        err: where notes go.
        form: of the tables.
        mixed: put runs of different protocols into one table, which names what differs.
        against: the method whose difference from every other is tested; default: the one with the
            best average accuracy.
        names: LABEL=NAME, what to call methods.
        metrics: of the predictions that runs keep, by name or file, to show in place of others.
        std: show standard deviations beside the intervals.
        output: folder for the figures and CSV files; default: none are written.

    Raises:
        UserError: no finished run is found, or a label is unknown.
    """
    results = _renamed(load_results(*paths).with_metrics(*metrics), names)
    groups = [_mixed(results)] if mixed else by_protocol(results)
    labels = {label for group in groups for label in group.labels}
    if against is not None and against not in labels:
        raise UserError(f"--against {against}: no run of it. {nearest(against, sorted(labels))}")
    for group in groups:
        _show(group, out, form, against, std)
        if output is not None:
            for path in _write(group, output, ConsoleDisplay(err)):
                say(err, f"written: {path}")
    if metrics and (lacking := without_predictions(results)):
        say(err, f"{lacking} of {len(results)} runs keep no predictions: repeat them with --fresh")
    if any(_CODE.search(label) for label in results.labels):
        say(err, "four digits after a label: runs under it differ in their settings or code")
    if len(groups) > 1:
        say(err, f"{len(groups)} protocols, a table for each: {_differing(groups)} differ")
        say(err, "--mixed puts them into one table")


def _show(group: Results, out: Console, form: Form, against: str | None, std: bool) -> None:
    contents = group.contents
    if form == "csv":
        text = comparison_csv(contents, [str(result.path) for result in group]).rstrip()
    elif form == "table":
        out.print(results_table(contents, std))
        tested = _differences_table(group, against)
        if tested is not None:
            out.print(tested)
        return
    else:
        table = grid(contents, std)
        text = markdown(table) if form == "markdown" else latex(table)
    out.print(text, soft_wrap=True, markup=False, highlight=False)


def _differences_table(group: Results, against: str | None) -> Table | None:
    """Return the table of paired differences; None if no two methods share a run's seed."""
    groups = by_strategy(group.contents)
    shown = asked_metrics(group.contents) or [
        key for key in list(columns(group.contents))[:2] if not key.startswith("probe")
    ]
    first = next(iter(columns(group.contents)))
    reference = against if against in groups else best_method(groups, first)
    found = differences(groups, reference, shown)
    if not found:
        return None
    table = Table(
        title=f"difference from {literal(reference)}, in points, on common seeds",
        caption="± half the 95 % interval of the mean, p of the paired t-test (two-sided, not"
        " corrected for their number)",
        caption_justify="left",
    )
    table.add_column("strategy", overflow="fold")
    table.add_column("pairs", justify="right")
    for key in shown:
        table.add_column(columns(group.contents)[key].replace("\n", " "), justify="right")
        table.add_column("p", justify="right")
    for label in dict.fromkeys(difference.label for difference in found):
        cells = []
        rows = {d.metric: d for d in found if d.label == label}
        for key in shown:
            one = rows.get(key)
            interval = "" if one is None or one.interval is None else f" ± {one.interval:.1f}"
            cells.append("-" if one is None else f"{one.mean:+.1f}{interval}")
            cells.append("-" if one is None or one.p is None else f"{one.p:.3f}")
        table.add_row(literal(label), str(max(d.pairs for d in rows.values())), *cells)
    return table


def _differing(groups: Sequence[Results]) -> str:
    protocols = [protocol_of(group[0].content) for group in groups]
    return ", ".join(name for name in protocols[0] if len({p[name] for p in protocols}) > 1)


def _mixed(results: Results) -> Results:
    """Return all runs, each label with what sets its protocol apart."""
    kinds = {result.content.get("protocol") for result in results}
    if len(kinds) > 1:
        raise UserError(
            f"--mixed: runs of {' and '.join(sorted(map(str, kinds)))} have no columns in common"
        )
    protocols = [protocol_of(result.content) for result in results]
    differing = [name for name in protocols[0] if len({p[name] for p in protocols}) > 1]
    return Results(
        _named(result, " ".join([result.label, *(f"[{p[name]}]" for name in differing if p[name])]))
        for result, p in zip(results, protocols, strict=True)
    )


def _renamed(results: Results, names: Sequence[str]) -> Results:
    """Return the runs under the names that the user gives to methods."""
    given: dict[str, str] = {}
    for text in names:
        label = max(
            (known for known in results.labels if text.startswith(f"{known}=")), key=len, default=""
        )
        if not label:
            asked = text.rpartition("=")[0] or text
            raise UserError(
                f"--label {text}: expected LABEL=NAME with the label of a run."
                f" {nearest(asked, results.labels)}"
            )
        given[label] = text[len(label) + 1 :]
    return Results(_named(result, given.get(result.label, result.label)) for result in results)


def _named(result: Result, label: str) -> Result:
    return Result(result.path, {**result.content, "label": label})


def _write(group: Results, output: Path, display: ConsoleDisplay) -> list[Path]:
    """Write the figure and the CSV of a table; return their paths."""
    from cl_clipfit.report.figures import plot_comparison  # Matplotlib is slow to import

    path = output / protocol_name(group[0].content)
    output.mkdir(parents=True, exist_ok=True)
    table = path.with_name(f"{path.name}.csv")
    write_atomic(table, comparison_csv(group.contents, [str(result.path) for result in group]))
    with drawing(path, display.warn):
        plot_comparison(group.contents, path)
    figures = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    return [*(figure for figure in figures if figure.exists()), table]
