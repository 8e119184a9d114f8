"""Tables in Markdown."""

from collections.abc import Iterable, Sequence

from pydantic import BaseModel

from cl_clipfit.commands.catalogue import type_name


def cell(text: str) -> str:
    """Return text that Markdown shows in a cell as it is."""
    escaped = "".join(f"\\{c}" if c in "\\|*_<>[]`$" else c for c in text)
    return " ".join(escaped.split())


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells are Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fields(cls: type[BaseModel]) -> str:
    """Return the settings of a class, one row each."""
    rows = []
    for key, field in cls.model_fields.items():
        default = "" if field.is_required() else cell(str(field.default))
        rows.append((f"`{key}`", cell(type_name(field)), default, cell(field.description or "")))
    return table(("key", "type", "default", "meaning"), rows)
