"""A table that leaves out columns where it does not fit, and what is best in one."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_NAME = 22  # columns that the first column keeps, where names are folded


class FittedTable(Table):
    """A table whose headers and numbers are never broken: columns are left out instead.

    Attributes:
        drops: titles of the columns that go if there is no room, the first of them first.
        note: what precedes their names in the caption.
    """

    drops: Sequence[str] = ()
    note = "left out, in result.json"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the columns for which there is room, and name the others below."""
        table, gone = self._without(()), list[str]()
        wide = options.update(max_width=10_000)
        for title in self.drops:
            if Measurement.get(console, wide, table._narrowest()).minimum <= options.max_width:
                break
            if any(column.header == title for column in table.columns):
                gone.append(title)
                table = self._without(gone)
        if gone:
            names = ", ".join(title.replace("\n", " ") for title in gone)
            line = Text(f"{self.note}: {names}")
            table.caption = (
                Text("\n").join([Text.from_markup(str(self.caption)), line])
                if self.caption
                else line
            )
        yield from Table.__rich_console__(table, console, options)

    def _without(self, titles: Sequence[str]) -> "FittedTable":
        """Return a copy without the columns of these titles; only its names may be folded."""
        table = copy.copy(self)
        kept = [column for column in self.columns if column.header not in titles]
        table.columns = [
            replace(column, _index=at, no_wrap=at > 0) for at, column in enumerate(kept)
        ]
        return table

    def _narrowest(self) -> "FittedTable":
        """Return a copy with the names folded."""
        table, names = copy.copy(self), self.columns[0]
        longest = max((len(str(cell)) for cell in (names.header, *names.cells)), default=0)
        table.columns = [replace(names, width=min(longest, _NAME)), *self.columns[1:]]
        return table


def means_of(values: Mapping[str, Sequence[float | None]]) -> dict[str, float | None]:
    """Return the mean of each method's values, without those that are missing."""
    known = {name: [v for v in group if v is not None] for name, group in values.items()}
    return {name: fmean(group) if group else None for name, group in known.items()}


def best_of(values: Mapping[str, Sequence[float | None]], less: bool = False) -> set[str]:
    """Return the methods with the best mean in a column; none if there is nothing to compare.

    Args:
        values: of every run, by method.
        less: less is better.
    """
    means = {name: mean for name, mean in means_of(values).items() if mean is not None}
    if len(means) < 2:
        return set()
    top = min(means.values()) if less else max(means.values())
    return {name for name, mean in means.items() if mean == top}
