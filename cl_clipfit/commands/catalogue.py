"""What `run.py list` and `run.py info` print."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cl_clipfit.config.command import RunConfig
from cl_clipfit.config.options import Options, Recipe
from cl_clipfit.errors import UserError, nearest, program
from cl_clipfit.experiment.recipes import (
    FEWEST_EPOCHS,
    MOST_EPOCHS,
    STEPS,
    make_settings,
    named_recipes,
)
from cl_clipfit.registry import KINDS, ONE, Entry, Kind, Registry
from cl_clipfit.report.display import literal, one_line

_SCENARIO_FACTS = ("CLASSES", "TASKS", "IMAGES", "DOWNLOAD", "LICENCE")
_OWN = "your own"
GROUPS = (
    "reference points",
    "bounds",
    "regularisation",
    "replay",
    "selective fine-tuning",
    "scaling and low rank",
    "update shaping",
    "consistency",
    "prompts",
    "adapters",
    "exemplar-free, for CLIP",
    "closed-form heads",
    "merging",
    "weights per task",
    "heads beside any method",
    _OWN,
)
_MODEL_NAMES = (
    "--model ARCH:TAG; from a file ARCH:TAG:FILE or ARCH:FILE; untrained ARCH:random;"
    " an architecture of one's own CONFIG.json:FILE, local-dir:FOLDER or hf-hub:ORG/REPO"
)
_ADAPTED = f"{FEWEST_EPOCHS} to {MOST_EPOCHS}, about {STEPS} steps per task"
_BOUNDLESS = 2**31  # limits from here on are technical and are not shown


def list_entries(kind: Kind, pattern: str, plugins: Sequence[Path], console: Console) -> None:
    """Print one row for each entry; a broken plug-in is listed with its error.

    Raises:
        UserError: no name contains the pattern.
    """
    entries = [
        e for e in Registry(plugins).entries(kind) if pattern.casefold() in e.name.casefold()
    ]
    if not entries:
        raise UserError(f"no {kind} with '{pattern}' in the name")
    tables = {"strategies": _strategies_table, "scenarios": _scenarios_table}
    table = tables.get(kind, _metrics_table)(entries)
    table.caption, table.caption_justify = literal(f"more: {program()} info NAME"), "left"
    console.print(table)


def _scenarios_table(entries: list[Entry]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("name", *(fact.lower() for fact in _SCENARIO_FACTS)):
        # One line per scenario: its name, or `info`, tells what it is.
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for entry in entries:
        about = entry.about
        if entry.error:
            about = about | {_SCENARIO_FACTS[0]: f"cannot be used: {entry.error}"}
        values = [str(about.get(fact, "")) for fact in _SCENARIO_FACTS]
        table.add_row(*(literal(text) for text in (entry.name, *values)))
    return table


def _metrics_table(entries: list[Entry]) -> Table:
    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for entry in entries:
        text = f"cannot be used: {entry.error}" if entry.error else entry.summary.removesuffix(".")
        table.add_row(literal(f"  {entry.name}"), literal(one_line(text)))
    return table


def _strategies_table(entries: list[Entry]) -> Table:
    """Return one line per strategy, by group."""
    groups: dict[str, list[Entry]] = {name: [] for name in GROUPS}
    for entry in entries:
        groups.setdefault(str(entry.about.get("GROUP", _OWN)), []).append(entry)
    table = Table(box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for group, members in groups.items():
        if members:
            table.add_row(Text(group, style="bold", no_wrap=True, overflow="ignore"))
        for entry in members:
            summary = one_line(entry.summary.removesuffix("."))
            line = Text(summary, no_wrap=True, overflow="ellipsis")
            error = literal(f"cannot be used: {entry.error}")
            table.add_row(literal(f"  {entry.name}"), error if entry.error else line)
    return table


def list_models(pattern: str, console: Console) -> None:
    """Print every open_clip architecture with its tags of pretrained weights, and `mini`."""
    import open_clip

    tags: dict[str, list[str]] = {"mini": ["bundled, no download"]}
    for architecture in sorted(open_clip.list_models()):
        tags[architecture] = open_clip.list_pretrained_tags_by_model(architecture)
    shown = {name: names for name, names in tags.items() if pattern.casefold() in name.casefold()}
    if not shown:
        raise UserError(f"no model with '{pattern}' in the name. {nearest(pattern, tags)}")
    table = Table("architecture", "weights", box=box.SIMPLE_HEAD)
    for name, names in shown.items():
        table.add_row(literal(name), literal(", ".join(names) or "ARCH:FILE only"))
    console.print(table)
    console.print(literal(_MODEL_NAMES))


def show_info(name: str, plugins: Sequence[Path], console: Console) -> None:
    """Print the facts, recipes and options of a strategy, scenario or metric.

    Raises:
        UserError: no entry has this name.
    """
    registry = Registry(plugins)
    matches = [e for kind in KINDS for e in registry.entries(kind) if e.name == name]
    if not matches:
        names = [e.name for kind in KINDS for e in registry.entries(kind)]
        raise UserError(
            f"no strategy, scenario or metric is called '{name}'. {nearest(name, names)}"
        )
    for entry in matches:
        _show_entry(entry, registry, console)


def _show_entry(entry: Entry, registry: Registry, console: Console) -> None:
    if entry.error:
        raise UserError(entry.error)
    options = entry.options_class()
    console.print(
        f"[bold]{literal(entry.name)}[/bold] ({ONE[entry.kind]}): {literal(entry.summary)}"
    )
    for key, value in entry.about.items():
        if key not in ("RECIPE", "RECIPES", "PUBLISHED"):
            shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
            if key == "EXEMPLARS" and hasattr(options(), str(value)):  # an option or a property
                shown = f"{getattr(options(), value)}, with the default options"
            console.print(literal(f"  {key.lower().replace('_', ' ')}: {shown}"))
    recipes = named_recipes(entry)
    for title, recipe in recipes.items() if entry.kind == "strategies" else ():
        if recipe:
            shown = ", ".join(f"{key}={value}" for key, value in recipe.items())
            console.print(literal(f"  {title}: {shown}"))
    if options.model_fields:
        console.print(_fields_table(f"options, set with --set {entry.name}.KEY=VALUE", options))
    if entry.kind == "scenarios":
        title = (
            "recipe for strategies that train, set with --epochs, --lr, --set STRATEGY.KEY=VALUE"
        )
        defaults = {"epochs": _ADAPTED, **recipes["recipe"]}
        console.print(_fields_table(title, Recipe, defaults))
        console.print(_recipes_table(entry, registry))


def _recipes_table(scenario: Entry, registry: Registry) -> Table:
    """Return one row per strategy that trains: the recipe and options it really has on a stream."""
    from cl_clipfit.clip.feature_classifier import FEATURES  # imports PyTorch

    title = f"recipes on {scenario.name}, with what strategies set themselves"
    table = Table(box=box.SIMPLE_HEAD, title=literal(title))
    for column in ("strategy", "epochs", "batch", "optimizer", "lr", "other settings"):
        table.add_column(column, overflow="fold")
    config = RunConfig()
    for entry in registry.entries("strategies"):
        cls = None if entry.error else registry.strategy_class(entry.name)
        if cls is None or cls.learning != "gradient" or cls.base_option:
            continue
        if cls.towers and scenario.about.get("MODEL") == FEATURES:
            continue
        recipe, options = make_settings(config, scenario, entry, {})
        adapts = "epochs" not in recipe.model_fields_set
        shown = {"epochs", "batch_size", "optimizer", "lr"}
        others = recipe.model_dump(include=recipe.model_fields_set - shown)
        others |= options.model_dump(include=options.model_fields_set)
        cells = (
            entry.name, _ADAPTED if adapts else recipe.epochs, recipe.batch_size,
            recipe.optimizer, recipe.lr,
        )  # fmt: skip
        settings = ", ".join(f"{key}={value}" for key, value in others.items())
        table.add_row(*(literal(str(cell)) for cell in (*cells, settings)))
    return table


def _fields_table(title: str, cls: type[Options], values: dict[str, Any] | None = None) -> Table:
    table = Table("key", "type", "default", "meaning", box=box.SIMPLE_HEAD, title=literal(title))
    for key, field in cls.model_fields.items():
        default = (values or {}).get(key, field.default)
        cells = (key, type_name(field), str(default), field.description or "")
        table.add_row(*(literal(cell) for cell in cells))
    return table


def _annotation_name(annotation: Any) -> str:
    """Return a type in words, such as "float", "crop | none" or "list of str"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _annotation_name(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (tuple, list):
        return f"list of {_annotation_name(arguments[0])}"
    if arguments:
        return " | ".join(map(_annotation_name, arguments))
    return "none" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def type_name(field: FieldInfo) -> str:
    """Return the type with its range, such as "float >= 0"."""
    name = _annotation_name(field.annotation)
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [
        f"{sign} {limit}"
        for rule in field.metadata
        for key, sign in signs.items()
        if (limit := getattr(rule, key, None)) is not None and limit < _BOUNDLESS
    ]
    return " ".join([name, ", ".join(limits)]).strip()
