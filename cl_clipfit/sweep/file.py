"""Read `sweep.yaml`: settings that all runs share, a grid of values, a list of runs."""

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cl_clipfit.config.command import OutputSettings, RunConfig
from cl_clipfit.config.options import explain, shortened
from cl_clipfit.config.parsing import format_setting
from cl_clipfit.config.text_files import Lines, yaml_with_lines
from cl_clipfit.errors import UserError, nearest

SECTIONS = ("common", "grid", "list", "tune", "slurm")
MOST_RUNS = 10_000
_OPTIONS = tuple(name for name in RunConfig.model_fields if name not in OutputSettings.model_fields)
_LISTS = (  # a single value may stand for a list of one
    "strategy", "seed", "class_order", "template", "probe", "set", "plugin", "then", "prompts",
)  # fmt: skip
_SINGLE = ("strategy", "seed", "class_order")  # lists of a command of which a run has one
_ASSIGNED = re.compile(r"([A-Za-z][\w+-]*)\.([A-Za-z_]\w*)")  # STRATEGY.key

Cell = dict[str, Any]  # the settings of one run: options by name, and NAME.key


@dataclass(frozen=True)
class SweepFile:
    """The content of a sweep file, checked as far as single values go.

    Attributes:
        path: the file.
        common: settings of all runs.
        grid: values by setting; every combination is run.
        listed: settings of single runs, each combined with the grid.
        tune: what `--tune` searches: values by `NAME.key` or option.
        slurm: parameters of the jobs of `--engine slurm`.
        lines: the line of every value.
    """

    path: Path
    common: Cell
    grid: Mapping[str, list[Any]]
    listed: list[Cell]
    tune: Mapping[str, Any]
    slurm: Mapping[str, Any]
    lines: Lines

    def cells(self) -> list[Cell]:
        """Return the settings of every run: the list times the grid; the first key varies slowest.

        Raises:
            UserError: there are too many, or one has no strategy.
        """
        count = len(self.listed or [{}]) * math.prod(map(len, self.grid.values()))
        if count > MOST_RUNS:
            raise UserError(
                f"{self.path}: {count:,} runs, and a sweep has {MOST_RUNS:,} at most: split it"
            )
        cells = [
            {**self.common, **dict(zip(self.grid, values, strict=True)), **one}
            for one in self.listed or [{}]
            for values in itertools.product(*self.grid.values())
        ]
        if any("strategy" not in cell for cell in cells):
            raise UserError(f"{self.path}: no strategy: name one under grid, list or common")
        return cells

    def varying(self) -> set[str]:
        """Return the settings that differ between runs."""
        listed = {key for one in self.listed for key in one}
        return listed | {key for key, values in self.grid.items() if len(values) > 1}

    def place(self, key: str) -> str:
        """Return where a setting is, as "sweep.yaml, line 7: grid.lr"; the file alone if nowhere.

        Example:
            >>> file = SweepFile(Path("s.yaml"), {}, {"lr": [1]}, [], {}, {}, {("grid", "lr"): 3})
            >>> file.place("lr"), file.place("seed")
            ('s.yaml, line 3: grid.lr', 's.yaml')
        """
        for path, line in self.lines.items():
            inside = path[:1] in (("common",), ("grid",), ("list",), ("tune",))
            if inside and len(path) > 1 and path[-1] == key:
                return f"{self.path}, line {line}: {_dotted(path)}"
        return str(self.path)


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))


def read_sweep(file: Path) -> SweepFile:
    """Read a sweep file, and check every setting and value by itself.

    Raises:
        UserError: the file is missing or not such YAML, or a setting is unknown or invalid; the
            message names the key and its line.
    """
    content, lines = yaml_with_lines(file, str(file))
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected the sections {', '.join(SECTIONS)}")

    def wrong(problem: str, *path: str | int) -> UserError:
        where = f", line {lines[path]}: {_dotted(path)}" if path in lines else ""
        return UserError(f"{file}{where}: {problem}")

    for section in content:
        if section not in SECTIONS:
            advice = "put settings under common, grid or list. "
            raise wrong(f"not a section: {advice}{nearest(section, SECTIONS)}", section)
    sections = {name: content.get(name) or {} for name in SECTIONS}
    listed = content.get("list") or []
    for name in ("common", "grid", "tune", "slurm"):
        if not isinstance(sections[name], dict):
            raise wrong("expected settings as 'name: value' lines", name)
    if not (isinstance(listed, list) and all(isinstance(one, dict) for one in listed)):
        raise wrong("expected a list of runs, each as 'name: value' lines", "list")
    for path, key, value in _values(sections, listed):
        if problem := _problem(key, None):
            raise wrong(problem, *path)
        if path[0] == "grid" and not (isinstance(value, list) and value):
            raise wrong("expected a list of values", *path)
        each = value if path[0] == "grid" else [value]
        for index, one in enumerate(each):
            place = (*path, index) if path[0] == "grid" else path
            if problem := _problem(key, one):
                raise wrong(problem, *place)
    for key in sections["tune"]:
        if problem := _problem(key, None):
            raise wrong(problem, "tune", key)
    return SweepFile(
        file, sections["common"], sections["grid"], listed, sections["tune"], sections["slurm"],
        lines,
    )  # fmt: skip


def _values(sections: Mapping[str, Any], listed: list[Cell]) -> Any:
    for section in ("common", "grid"):
        for key, value in sections[section].items():
            yield (section, key), key, value
    for index, one in enumerate(listed):
        for key, value in one.items():
            yield ("list", index, key), key, value


def _problem(key: str, value: Any) -> str:
    """Return what is wrong with a setting, or with one value of it unless that is None."""
    if _ASSIGNED.fullmatch(key):
        return "expected a value, not settings" if isinstance(value, dict) else ""
    if key in OutputSettings.model_fields:
        return "not a setting of a run: the command line has such options"
    if key not in _OPTIONS:
        return f"unknown setting. {nearest(key, _OPTIONS)}"
    if value is None:
        return ""
    if key in _SINGLE and isinstance(value, list):
        return "a run has one: put the list under grid"
    try:
        RunConfig.model_validate(as_options({key: value}))
    except ValidationError as error:
        return explain(error).partition(": ")[2] or explain(error)
    return ""


def as_options(cell: Cell) -> dict[str, Any]:
    """Return the settings of a run as fields of `RunConfig`; `NAME.key` become assignments.

    Example:
        >>> as_options({"strategy": "full", "full.lr": 0.1, "epochs": 2})
        {'strategy': ['full'], 'epochs': 2, 'set': ['full.lr=0.1']}
    """
    options: dict[str, Any] = {}
    assigned: list[str] = []
    for key, value in cell.items():
        if _ASSIGNED.fullmatch(key):
            assigned.append(f"{key}={format_setting(value)}")
        elif key in _LISTS and value is not None and not isinstance(value, list):
            options[key] = [value]
        else:
            options[key] = value
    if assigned:
        options["set"] = [*options.get("set", ()), *assigned]
    return options


def assigned_name(key: str) -> str | None:
    """Return NAME of a setting `NAME.key`; None for an option of the command."""
    match = _ASSIGNED.fullmatch(key)
    return match[1] if match else None


def describe(cell: Cell, varying: set[str]) -> str:
    """Return how a run of a sweep is called: its method, and the settings of it that vary.

    Example:
        >>> describe({"strategy": "full", "full.lr": 0.1, "epochs": 2}, {"full.lr", "epochs"})
        'full:lr=0.1,epochs=2'
    """
    strategy = str(cell["strategy"])
    name = strategy.partition(":")[0]
    shown = [
        f"{key.removeprefix(f'{name}.')}={shortened(format_setting(value))}"
        for key, value in cell.items()
        if key in varying and (key in _OF_METHOD or _ASSIGNED.fullmatch(key))
    ]
    joined = "," if ":" in strategy else ":"
    return strategy + joined * bool(shown) + ",".join(shown)


# Options of which a method may have several values side by side in one table.
_OF_METHOD = (
    "recipe", "epochs", "batch_size", "lr", "on_nan", "precision", "data_seed", "init_seed", "set",
)  # fmt: skip
