"""Write `report.html`: what there is to see of runs, in one file that needs no other."""

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cl_clipfit._version import __version__
from cl_clipfit.errors import UserError, printable
from cl_clipfit.report.grid import Grid, grid
from cl_clipfit.report.html.by_image import ByImage, by_image, class_names
from cl_clipfit.report.html.charts import Chart, Looks, colour_of, dash_of, shape_of
from cl_clipfit.report.html.comparison import difference_table
from cl_clipfit.report.html.curves import (
    barriers,
    curve_charts,
    landscape_charts,
    landscapes,
    layer_charts,
    short_layer,
)
from cl_clipfit.report.html.definitions import definitions
from cl_clipfit.report.html.heat import Heat, heat, style_sheet
from cl_clipfit.report.html.provenance import Table, commands, costs, facts, warnings
from cl_clipfit.report.results import Results, by_protocol
from cl_clipfit.report.style import PALETTE, ZERO_SHOT, looks_of
from cl_clipfit.report.tables import by_strategy, columns
from cl_clipfit.storage.files import write_atomic
from cl_clipfit.storage.manifest import adding, run_around
from cl_clipfit.storage.result import Content, Result
from cl_clipfit.storage.run_folder import REPORT


@dataclass(frozen=True)
class Line:
    """A method in the legend: its name, and how its lines look."""

    label: str
    colour: str
    dash: str
    shape: str


@dataclass(frozen=True)
class Landscape:
    """What `run.py landscape` measured of a run, or the barriers that its method measured."""

    label: str
    charts: Sequence[Chart]
    legend: Sequence[Line]
    barriers: Table


@dataclass(frozen=True)
class Protocol:
    """Everything a report shows of runs whose numbers can be compared."""

    grid: Grid
    differences: tuple[str, Sequence[str], Sequence[Sequence[str]]]
    legend: Sequence[Line]
    colours: dict[str, str]
    curves: Sequence[Chart]
    matrices: Sequence[tuple[str, Sequence[Heat]]]
    by_image: ByImage
    layers: Sequence[Chart]
    layer_tables: Sequence[tuple[str, Sequence[Heat]]]
    landscapes: Sequence[Landscape]
    costs: Table
    definitions: Sequence[tuple[str, str, str]]
    commands: Sequence[tuple[str, str, str]]
    facts: Sequence[tuple[str, str]]
    warnings: Sequence[str]


def write_report(results: Results, path: Path, *, mixed: bool = False) -> Path:
    """Write the report of finished runs.

    Args:
        results: the runs; those of unlike protocols have a part of the page each.
        path: the file to write, or a folder, which gets a `report.html`.
        mixed: one part for all: they are of one command, and may differ in the class order.

    Returns:
        the file.

    Raises:
        UserError: there is no run, a run's files are damaged, or the file cannot be written.
    """
    if not results:
        raise UserError("there is no run to report")
    file = path / REPORT if path.is_dir() else path
    write_page([results] if mixed else by_protocol(results), file)
    return file


def write_page(groups: Sequence[Results], file: Path) -> None:
    """Write the report of finished runs, with a part of the page for each group.

    Raises:
        UserError: the files of a run are damaged, or the page cannot be written.
    """
    page, around = render(groups), run_around(file)
    with adding(around) if around else contextlib.nullcontext():
        write_atomic(file, page)


def render(groups: Sequence[Results]) -> str:
    """Return the report of finished runs as a page, with a part for each group."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("cl_clipfit.report", "html"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=StrictUndefined,
    )  # fmt: skip
    templates.filters |= {"subscripts": _subscripts, "columns": _beside}
    return templates.get_template("report.html.j2").render(
        protocols=[_protocol(runs) for runs in groups],
        heat_colours=style_sheet(),
        palette=PALETTE,
        version=__version__,
        runs=sum(map(len, groups)),
    )


def _subscripts(formula: str) -> Any:
    """Return a formula whose indices, as in R_t,j and A_{j<t}, are set below the line."""
    from markupsafe import Markup, escape

    text = str(escape(formula))
    return Markup(re.sub(r"_(?:{([^}]*)}|(\w(?:,\w)*))", r"<sub>\1\2</sub>", text))


def _beside(columns: int) -> int:
    """Return how many tables of so many columns stand beside each other on a wide screen."""
    return 3 if columns <= 5 else 2 if columns <= 11 else 1


def _protocol(runs: Results) -> Protocol:
    contents = [_shown(content) for content in runs.contents]
    runs = Results(Result(r.path, content) for r, content in zip(runs, contents, strict=True))
    groups = by_strategy(contents)
    looks = looks_of([*groups, *([] if ZERO_SHOT in groups else [ZERO_SHOT])])
    return Protocol(
        grid=grid(contents),
        differences=difference_table(groups),
        legend=_legend(looks),
        colours={label: colour_of(look) for label, look in looks.items()},
        curves=curve_charts(groups, looks),
        matrices=[(label, _matrices(group)) for label, group in groups.items()],
        by_image=by_image(runs, class_names(contents[0])),
        layers=layer_charts(groups, looks),
        layer_tables=[(label, tables) for label, group in groups.items()
                      if (tables := _layer_tables(group[0]))],
        landscapes=_landscapes(runs),
        costs=costs(groups),
        definitions=definitions(list(columns(contents))),
        commands=commands(runs),
        facts=facts(contents),
        warnings=warnings(contents),
    )  # fmt: skip


def _shown(content: Content) -> Content:
    """Return a result whose label can be shown: without control sequences."""
    return {**content, "label": printable(content["label"])}


def _legend(looks: Looks) -> list[Line]:
    return [
        Line(label, colour_of(look), " ".join(map(str, dash_of(look))), shape_of(look))
        for label, look in looks.items()
    ]


def _matrices(group: Sequence[Content]) -> list[Heat]:
    """Return the accuracy tables of a method, the mean over its runs."""
    after = [str(row) if row else "before" for row in range(len(group[0]["accuracy_matrix"]))]
    tasks = [str(task + 1) for task in range(len(group[0]["tasks"]))]
    titles = {
        "accuracy_matrix": "among the classes seen (%)",
        "all_classes_matrix": "among all classes of the stream (%)",
        "task_aware_matrix": "among the task's own classes (%)",
    }
    return [
        heat(
            f"accuracy {title}", np.array([run[key] for run in group], dtype=float).mean(0), after,
            tasks, corner="after task / on task",
        )
        for key, title in titles.items()
    ]  # fmt: skip


def _layer_tables(result: Content) -> list[Heat]:
    """Return how much each layer changed task by task, a table per tower."""
    from cl_clipfit.report.figures import by_tower

    changes = result["change_by_layer"]
    if not any(changes):
        return []
    after = [str(task + 1) for task in range(len(changes))]
    tables = []
    for tower, layers in by_tower(list(changes[-1])).items():
        values = np.array([[task.get(name, np.nan) for name in layers] for task in changes])
        scale = 1000 * values  # a root mean square change is some thousandths
        top = float(np.nanmax(scale)) if scale.size else 1.0
        tables.append(
            heat(
                f"{tower}: root mean square change from the pretrained weights (thousandths)",
                scale, after, [short_layer(name) for name in layers],
                corner="after task / layer", top=top, digits=1,
            )
        )  # fmt: skip
    return tables


def _landscapes(runs: Results) -> list[Landscape]:
    """Return the lines between solutions of every run that has them: of the last task measured."""
    found = []
    for run in runs:
        measured, table = landscapes(run.path), barriers(run.content)
        charts: list[Chart] = []
        looks: Looks = {}
        if measured:
            charts, looks = landscape_charts(measured[-1])
            lines = {kind: measured[-1]["lines"][kind] for kind in ("train", "test")}
            rows = [
                [name, *(f"{lines[kind][name]['barrier']:z.3f}" for kind in lines)]
                for name in looks
            ]
            table = ["line", "barrier, training images", "barrier, test images"], rows
        if charts or table[1]:
            label = f"{run.label}, seed {run.seed}"
            found.append(Landscape(label, charts, _legend(looks), table))
    return found
