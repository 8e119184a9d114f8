"""A page for each strategy and scenario, from its docstrings, literals, options and recipes."""

import ast
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from links import PAGES, ROOT
from tables import cell, fields, table

from cl_clipfit.commands.catalogue import GROUPS
from cl_clipfit.config.options import Recipe
from cl_clipfit.experiment.recipes import named_recipes
from cl_clipfit.registry import Entry, Kind, Registry

# Metrics are few, and described in docs/metrics.md.
TITLES: dict[Kind, str] = {"strategies": "Every strategy", "scenarios": "Every scenario"}
TOWERS = {(): "neither", ("image",): "image", ("text",): "text", ("image", "text"): "both"}
INTRODUCTIONS = {
    "strategies": (
        "One page per file of `strategies/`, from its docstring, options and recipes. Sizes and"
        " what each one keeps of old tasks are [compared in one table](../../strategies.md)."
    ),
    "scenarios": (
        "One page per file of `scenarios/`, from its docstring and options. What the streams"
        " have in common is described under Streams."
    ),
}


def entry_pages() -> dict[str, str]:
    """Return the pages of all strategies and scenarios, and the index of either."""
    registry, pages = Registry(), {}
    for kind in TITLES:
        entries = registry.entries(kind)
        for entry in entries:
            page = f"reference/{kind}/{entry.name}"
            PAGES[str(entry.file.relative_to(ROOT))] = page
            pages[page] = entry_page(entry)
        pages[f"reference/{kind}/index"] = index_page(kind, entries)
    return pages


def index_page(kind: Kind, entries: Iterable[Entry]) -> str:
    """Return the list of all entries: strategies by group, scenarios by name."""
    groups: dict[str, list[Entry]] = {}
    if kind == "strategies":
        groups = {group: [] for group in GROUPS}
    for entry in entries:
        groups.setdefault(str(entry.about.get("GROUP", "")), []).append(entry)
    parts = [f"# {TITLES[kind]}\n\n{INTRODUCTIONS[kind]}\n"]
    for group, members in groups.items():
        if members:
            rows = [(f"[{e.name}]({e.name}.md)", cell(e.summary)) for e in members]
            parts += [f"## {group.capitalize()}\n"] if group else []
            parts.append(table(("name", "what it is"), rows))
    names = "\n".join(entry.name for members in groups.values() for entry in members)
    return "\n".join([*parts, f"```{{toctree}}\n:hidden:\n\n{names}\n```\n"])


def entry_page(entry: Entry) -> str:
    """Return the page of one strategy or scenario."""
    options = entry.options_class()
    strategy = entry.kind == "strategies"
    facts = {key: value for key, value in entry.about.items() if key not in _RECIPES}
    parts = [f"# {entry.name}\n", ast.get_docstring(ast.parse(entry.file.read_text())) or "", ""]
    if strategy:
        cls = entry.strategy_class()
        facts |= {"LEARNING": cls.learning, "TOWERS": TOWERS[cls.towers]}
        parts += [inspect.cleandoc(cls.__doc__ or ""), ""]
    flag = "strategy" if strategy else "scenario"
    parts += [f"```\nrun.py --{flag} {entry.name}\n```\n", facts_table(facts)]
    if options.model_fields:
        heading = f"## Options\n\nSet with `--set {entry.name}.KEY=VALUE`"
        inline = f", or as `--{flag} {entry.name}:KEY=VALUE`.\n"
        parts += [heading + inline, fields(options)]
    recipes = {title: values for title, values in named_recipes(entry).items() if values}
    if recipes:
        parts += ["## Recipes\n", recipes_table(recipes)]
    up = "../../../" + str(entry.file.relative_to(ROOT))
    parts += ["## Source\n", f"`{entry.file.relative_to(ROOT)}`\n"]
    parts.append(f"```{{literalinclude}} {up}\n```\n")
    return "\n".join(parts)


_RECIPES = ("RECIPE", "RECIPES", "PUBLISHED")


def facts_table(facts: Mapping[str, Any]) -> str:
    """Return the literals of a file that are short enough to be read."""
    rows = []
    for key, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        if not isinstance(value, dict) and len(shown) <= 300:
            rows.append((key.lower().replace("_", " "), cell(shown)))
    return table(("", ""), rows)


def recipes_table(recipes: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one column per recipe, and one row per setting that any of them has."""
    keys = list(dict.fromkeys(key for values in recipes.values() for key in values))
    order = {key: number for number, key in enumerate(Recipe.model_fields)}
    keys.sort(key=lambda key: order.get(key, len(order)))
    rows = [
        (f"`{key}`", *(cell(str(values.get(key, ""))) for values in recipes.values()))
        for key in keys
    ]
    return table(("setting", *recipes), rows)
