"""The table of results as text for papers and pages: Markdown, LaTeX, HTML."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cl_clipfit.report.baselines import MARK, below_baselines
from cl_clipfit.report.captions import PUBLISHED, captions
from cl_clipfit.report.columns import best_by_column, by_strategy, columns, value
from cl_clipfit.report.published import published_beside
from cl_clipfit.report.tables import cell, title_of

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """A table as plain text.

    Attributes:
        title: what it shows.
        head: titles of the columns.
        rows: cells; the first is the name of the method.
        best: for every row, whether each of its cells is the best measured one of its column.
        caption: lines below the table.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: Sequence[Sequence[bool]]
    caption: str


def grid(results: Sequence[dict[str, Any]], deviation: bool = False) -> Grid:
    """Return the table of results: one row per method, then published numbers, if there are any.

    With `deviation`, the standard deviation stands beside the interval.
    """
    shown, groups, others = columns(results), by_strategy(results), published_beside(results)
    below = below_baselines(groups)
    top = best_by_column(results)
    rows, best = [], []
    for name, group in groups.items():
        cells = [cell([value(r, key) for r in group], deviation=deviation) for key in shown]
        rows.append([f"{name} {MARK}" if name in below else name, *cells])
        best.append([False, *(name in top[key] for key in shown)])
    for paper in others:
        rows.append(
            [f"{PUBLISHED} {paper.strategy}", *(cell([paper.metrics.get(key)]) for key in shown)]
        )
        best.append([False] * len(rows[-1]))
    head = ["strategy", *(_words(title) for title in shown.values())]
    return Grid(
        title_of(results, deviation),
        head,
        rows,
        best,
        re.sub(r"\\(\[)", r"\1", captions(groups, others)),
    )


def markdown(table: Grid) -> str:
    """Return a table in Markdown.

    Example:
        >>> table = Grid("digits", ["strategy", "last"], [["a", "80.0"]], [[False, True]], "")
        >>> print(markdown(table))
        digits
        <BLANKLINE>
        | strategy | last |
        | --- | ---: |
        | a | **80.0** |
    """
    lines = [table.title, "", _line(table.head), "| --- |" + " ---: |" * (len(table.head) - 1)]
    for cells, best in zip(table.rows, table.best, strict=True):
        shown = [c.replace("|", r"\|") for c in cells]
        lines.append(_line([f"**{c}**" if b else c for c, b in zip(shown, best, strict=True)]))
    return "\n".join([*lines, *(["", table.caption] if table.caption else [])])


def latex(table: Grid) -> str:
    r"""Return a `tabular` for LaTeX's package booktabs.

    Example:
        >>> table = Grid("digits", ["strategy", "last"], [["a_b", "80.0"]], [[False, True]], "")
        >>> print(latex(table))
        % digits
        \begin{tabular}{lr}
        \toprule
        strategy & last \\
        \midrule
        a\_b & \textbf{80.0} \\
        \bottomrule
        \end{tabular}
    """
    lines = [
        f"% {table.title}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
        r"\toprule",
    ]
    lines += [f"{' & '.join(map(_escaped, table.head))} \\\\", r"\midrule"]
    for cells, best in zip(table.rows, table.best, strict=True):
        marked = zip(map(_escaped, cells), best, strict=True)
        lines.append(" & ".join(rf"\textbf{{{c}}}" if b else c for c, b in marked) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*lines, *(f"% {line}" for line in table.caption.splitlines())])


def page(table: Grid) -> str:
    """Return a table in HTML, without a style of its own, as notebooks show it."""
    head = "".join(f"<th>{html.escape(title)}</th>" for title in table.head)
    rows = []
    for cells, best in zip(table.rows, table.best, strict=True):
        marked = zip(map(html.escape, cells), best, strict=True)
        rows.append("".join(f"<td>{f'<b>{c}</b>' if b else c}</td>" for c, b in marked))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    caption = html.escape(table.caption).replace("\n", "<br>")
    parts = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f"<p>{html.escape(table.title)}</p><table>{parts}</table><p>{caption}</p>"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _words(title: str) -> str:
    """Return a column's title on one line; a word that was broken is whole again."""
    return title.replace("-\n", "").replace("\n", " ")


def _escaped(text: str) -> str:
    """Return text for LaTeX."""
    return "".join(_LATEX.get(c, c) for c in text).replace("±", r"$\pm$")
