"""What a report shows of runs whose numbers can be compared, part by part."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cl_clipfit.errors import printable
from cl_clipfit.report.columns import by_strategy, columns
from cl_clipfit.report.figures import by_tower
from cl_clipfit.report.grid import Grid, grid
from cl_clipfit.report.html.by_image import ByImage, Gallery, by_image, class_names
from cl_clipfit.report.html.charts import Chart
from cl_clipfit.report.html.comparison import difference_table
from cl_clipfit.report.html.curves import (
    barriers,
    curve_charts,
    landscape_charts,
    landscapes,
    layer_charts,
    layer_figure,
    short_layer,
)
from cl_clipfit.report.html.definitions import definitions
from cl_clipfit.report.html.heat import Heat, heat
from cl_clipfit.report.html.legend import Line, Looks, colour_of, lines_of
from cl_clipfit.report.html.provenance import Table, commands, costs, facts, warnings
from cl_clipfit.report.results import Results, protocol_name
from cl_clipfit.report.style import ZERO_SHOT, looks_of
from cl_clipfit.storage.result import Content, Result

Figure = Chart | Heat | Gallery


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

    name: str
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

    @property
    def figures(self) -> list[Figure]:
        """Return every figure, in the order of the page."""
        classes = [self.by_image.classes] if self.by_image.classes else []
        examples = self.by_image.examples
        return [
            *self.curves,
            *(table for _, tables in self.matrices for table in tables),
            *classes,
            *(table for _, table in self.by_image.confusion),
            *([Gallery(examples)] if examples else []),
            *self.layers,
            *(table for _, tables in self.layer_tables for table in tables),
            *(chart for landscape in self.landscapes for chart in landscape.charts),
        ]


def protocol(runs: Results) -> Protocol:
    """Return what a report shows of runs of one protocol."""
    contents = [_shown(content) for content in runs.contents]
    runs = Results(Result(r.path, content) for r, content in zip(runs, contents, strict=True))
    groups = by_strategy(contents)
    looks = looks_of([*groups, *([] if ZERO_SHOT in groups else [ZERO_SHOT])])
    return Protocol(
        name=protocol_name(contents[0]),
        grid=grid(contents),
        differences=difference_table(groups),
        legend=lines_of(looks),
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


def _matrices(group: Sequence[Content]) -> list[Heat]:
    """Return the accuracy tables of a method, the mean over its runs."""
    after = [str(row) if row else "before" for row in range(len(group[0]["accuracy_matrix"]))]
    tasks = [str(task + 1) for task in range(len(group[0]["tasks"]))]
    titles = {
        "accuracy_matrix": ("seen", "among the classes seen (%)"),
        "all_classes_matrix": ("all", "among all classes of the stream (%)"),
        "task_aware_matrix": ("task", "among the task's own classes (%)"),
    }
    return [
        heat(
            f"matrix-{kind}-{group[0]['label']}", f"accuracy {title}",
            np.array([run[key] for run in group], dtype=float).mean(0), after, tasks,
            corner="after task / on task", unit="accuracy (%)",
        )
        for key, (kind, title) in titles.items()
    ]  # fmt: skip


def _layer_tables(result: Content) -> list[Heat]:
    """Return how much each layer changed task by task, a table per tower."""
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
                f"{layer_figure(tower)}-{result['label']}",
                f"{tower}: root mean square change from the pretrained weights (thousandths)",
                scale, after, [short_layer(name) for name in layers],
                corner="after task / layer", unit="change (thousandths)", top=top, digits=1,
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
            charts, looks = landscape_charts(measured[-1], f"{run.label}-s{run.seed}")
            lines = {kind: measured[-1]["lines"][kind] for kind in ("train", "test")}
            rows = [
                [name, *(f"{lines[kind][name]['barrier']:z.3f}" for kind in lines)]
                for name in looks
            ]
            table = ["line", "barrier, training images", "barrier, test images"], rows
        if charts or table[1]:
            label = f"{run.label}, seed {run.seed}"
            found.append(Landscape(label, charts, lines_of(looks), table))
    return found
