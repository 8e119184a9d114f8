"""The public API: one page per room of the house, with every name of `cl_clipfit.__all__`."""

import inspect
from importlib import import_module
from types import ModuleType
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from sphinx.application import Sphinx
from tables import cell, fields, table

import cl_clipfit
from cl_clipfit.commands.catalogue import type_name

INDEX = """# API reference

Everything a program, a strategy file or a scenario file may import from `cl_clipfit`: the names in
`cl_clipfit.__all__`, by the room they live in. They load on first use.

```{toctree}
:maxdepth: 1

"""
# Modules within a public module, whose functions it does not export.
PARTS = {"metrics": ["cl_clipfit.metrics.functional"]}


def api_pages() -> dict[str, str]:
    """Return a page for each room that has public names, and their index."""
    rooms: dict[str, list[str]] = {}
    for name in cl_clipfit.__all__:
        if name != "__version__":
            value = getattr(cl_clipfit, name)
            home = value.__name__ if isinstance(value, ModuleType) else home_of(name, value)
            rooms.setdefault(home.split(".")[1], []).append(name)
    pages = {f"reference/api/{room}": room_page(room, names) for room, names in rooms.items()}
    return pages | {"reference/api/index": INDEX + "\n".join(sorted(rooms)) + "\n```\n"}


def home_of(name: str, value: Any) -> str:
    """Return the module that defines a public name; types of numbers do not know theirs."""
    home = getattr(value, "__module__", "")
    return home if home.startswith("cl_clipfit.") else "cl_clipfit.config.options"


def room_page(room: str, names: list[str]) -> str:
    """Return the page of a room."""
    summary = inspect.getdoc(import_module(f"cl_clipfit.{room}")) or ""
    parts = [f"# {room}\n", summary.partition("\n\n")[0], ""]
    aliases = []
    for name in sorted(names):
        value = getattr(cl_clipfit, name)
        if isinstance(value, ModuleType):
            modules = [value.__name__, *PARTS.get(name, [])]
            parts += [directive("automodule", module, ":members:") for module in modules]
        elif not inspect.isclass(value) and not inspect.isfunction(value):
            aliases.append((f"`{name}`", cell(type_name(FieldInfo.from_annotation(value)))))
        elif inspect.isfunction(value):
            parts.append(directive("autofunction", f"cl_clipfit.{name}"))
        elif issubclass(value, BaseModel):
            parts += [directive("autoclass", f"cl_clipfit.{name}"), fields(value)]
        else:
            bases = [":show-inheritance:"] if value.__bases__ != (object,) else []
            parts.append(directive("autoclass", f"cl_clipfit.{name}", ":members:", *bases))
    if aliases:
        parts += ["## Types of options\n", table(("annotation", "accepts"), aliases)]
    return "\n".join(parts)


def directive(kind: str, target: str, *options: str) -> str:
    """Return a directive of autodoc, which writes reStructuredText."""
    lines = [f".. {kind}:: {target}", *(f"   {option}" for option in options)]
    return "```{eval-rst}\n" + "\n".join(lines) + "\n```\n"


def no_signature(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Leave out the arguments of a settings class: a table below shows its fields."""
    settings = inspect.isclass(value) and issubclass(value, BaseModel)
    return ("", "") if settings else None


def keep_bars(
    app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Let a bar in a docstring be one, as in |x|: in reStructuredText it begins a substitution."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = line.split("`")
            parts[::2] = [part.replace("|", "\\|") for part in parts[::2]]
            lines[number] = "`".join(parts)
