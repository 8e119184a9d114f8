"""Published numbers of methods of the registry, to be shown beside runs of the same protocol.

`published.csv` has a line for each: the stream, the weights (the start of their tag; ViT-B/16), the
class order, the numbers of tasks, of base classes and of shots, the metrics in the order of the
protocol's table, and the source. None of them was reproduced here.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from cl_clipfit.data.orders import class_order

_METRICS = {
    "class-incremental": ("average_accuracy", "last_accuracy"),
    "mtil": ("transfer", "mtil_average", "mtil_last"),
    "x-tail": ("x_tail_transfer", "x_tail_average", "x_tail_last"),
}
_ARCHITECTURE = "ViT-B-16"


@dataclass(frozen=True)
class Published:
    """Numbers of a paper.

    Attributes:
        strategy: name in the registry.
        metrics: in percent, by name.
        source: the paper or code that reports them.
    """

    strategy: str
    metrics: Mapping[str, float]
    source: str


def published_beside(results: Sequence[Mapping[str, Any]]) -> list[Published]:
    """Return published numbers with the protocol of runs; none if their class orders differ."""
    one_order = len({tuple(result.get("class_order", ())) for result in results}) == 1
    return published(results[0]) if one_order else []


def published(result: Mapping[str, Any]) -> list[Published]:
    """Return published numbers with the protocol of a run: stream, weights, order, tasks, shots.

    Args:
        result: content of `result.json`.
    """
    names = _METRICS.get(result.get("protocol", ""))
    if names is None or not _comparable(result):
        return []
    text = files("cl_clipfit.report").joinpath("published.csv").read_text(encoding="utf-8")
    rows = [row for row in csv.DictReader(text.splitlines()) if _same_protocol(row, result)]
    return [Published(row["strategy"], _metrics(row, names), row["source"]) for row in rows]


def _metrics(row: Mapping[str, str], names: Sequence[str]) -> dict[str, float]:
    return dict(zip(names, map(float, row["metrics"].split()), strict=True))


def _comparable(result: Mapping[str, Any]) -> bool:
    """Return whether a run sees all images of the stream once they come, and is scored on tests."""
    model, cut = result["model"], set(result.get("stream", {})) - {"base_classes", "shots"}
    architecture = str(model.get("architecture", "")).removesuffix("-quickgelu")
    return not cut and result["scored_on"] == "test images" and architecture == _ARCHITECTURE


def _same_protocol(row: Mapping[str, str], result: Mapping[str, Any]) -> bool:
    cut = result.get("stream", {})
    return (
        row["scenario"] == result["scenario"]
        and str(result["model"]["pretrained"]).startswith(row["weights"])
        and row["tasks"] == str(len(result["tasks"]))
        and row["base_classes"] == str(cut.get("base_classes", ""))
        and row["shots"] == str(cut.get("shots", ""))
        and _same_order(row["class_order"], result)
    )


def _same_order(name: str, result: Mapping[str, Any]) -> bool:
    if name == "I":  # of the data sets of MTIL and X-TAIL: alphabetical but for the cars
        tasks: Sequence[Mapping[str, Any]] = result["tasks"]
        return tasks[0].get("name") == "fgvc-aircraft" and tasks[-1].get("name") == "sun397"
    return list(result["class_order"]) == class_order(name, len(result["class_order"]))
