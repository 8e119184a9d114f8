"""Marks of methods below the simplest ones, and published numbers beside runs."""

import csv
from importlib.resources import files
from typing import Any

import pytest

from cl_clipfit.data.orders import class_order
from cl_clipfit.registry import Registry
from cl_clipfit.report.baselines import below_baselines
from cl_clipfit.report.captions import captions
from cl_clipfit.report.published import published, published_beside


def run(last: float | None, zero_shot: float | None = 65.0) -> dict[str, Any]:
    return {"metrics": {"last_accuracy": last}, "curves": {"zero_shot": [None, zero_shot]}}


def test_a_method_below_zero_shot_class_means_or_lda_is_named() -> None:
    groups = {
        "good": [run(90.0), run(80.0)],
        "mine": [run(70.0), run(64.0)],
        "bad": [run(50.0)],
        "lda": [run(68.0)],
        "simplecil": [run(66.0)],
    }
    assert below_baselines(groups) == {
        "mine": ["lda"],
        "bad": ["zero-shot", "simplecil", "lda"],
    }


def test_a_row_of_zero_shot_is_the_baseline_where_there_is_one() -> None:
    groups = {"zero-shot": [run(60.0)], "coop": [run(58.0, zero_shot=55.0)]}
    assert below_baselines(groups) == {"coop": ["zero-shot"]}
    assert below_baselines({"coop": [run(58.0, zero_shot=55.0)]}) == {}
    assert below_baselines({"none": [run(None, None)]}) == {}


def test_the_caption_says_below_which() -> None:
    assert captions({"a": [run(50.0)], "b": [run(70.0)]}).endswith(
        "last accuracy below a simple baseline: a (zero-shot)"
    )
    assert captions({"b": [run(70.0)]}) == ""


def cifar(**changes: Any) -> dict[str, Any]:
    return {
        "scenario": "split-cifar100",
        "protocol": "class-incremental",
        "stream": {},
        "scored_on": "test images",
        "model": {"architecture": "ViT-B-16", "pretrained": "laion400m_e32"},
        "tasks": [{}] * 10,
        "class_order": class_order("pycil-1993", 100),
        **changes,
    }


def test_published_numbers_are_those_of_the_same_protocol() -> None:
    found = {paper.strategy: paper for paper in published(cifar())}
    assert found["ranpac"].metrics == {"average_accuracy": 89.3, "last_accuracy": 83.18}
    assert "2609.37888" in found["ranpac"].source
    openai = {"architecture": "ViT-B-16-quickgelu", "pretrained": "openai"}
    order = class_order("der-cifar100", 100)
    found = {p.strategy: p for p in published(cifar(model=openai, class_order=order))}
    assert found["mg-clip"].metrics["last_accuracy"] == 80.6
    assert "ranpac" not in found
    assert published_beside([cifar(), cifar()]) == published(cifar())
    assert published_beside([cifar(), cifar(class_order=order)]) == []
    fifty = cifar(tasks=[{}] * 6, stream={"base_classes": 50})
    assert {p.metrics["average_accuracy"] for p in published(fifty) if p.strategy == "vis"} == {
        87.17
    }
    birds = cifar(scenario="split-cub200", class_order=class_order("pycil-1993", 200))
    found = {paper.strategy: paper for paper in published(birds)}
    assert found["simplecil"].metrics == {"average_accuracy": 83.81, "last_accuracy": 77.52}


@pytest.mark.parametrize(
    "changes",
    [
        {"stream": {"shots": 16}},
        {"stream": {"limit": 20}},
        {"tasks": [{}] * 5},
        {"class_order": list(range(100))},
        {"scored_on": "validation images"},
        {"model": {"architecture": "ViT-B-16", "pretrained": "openai"}},
        {"model": {"architecture": "ViT-L-14", "pretrained": "laion400m_e32"}},
        {"scenario": "split-cifar10"},
        {"protocol": "transfer"},
    ],
)
def test_another_protocol_has_none(changes: dict[str, Any]) -> None:
    assert published(cifar(**changes)) == []


def test_x_tail_of_sixteen_shots_has_its_three_numbers() -> None:
    names = ["fgvc-aircraft", *"abcdefgh", "sun397"]
    result = cifar(
        scenario="x-tail", protocol="x-tail", stream={"shots": 16},
        model={"architecture": "ViT-B-16-quickgelu", "pretrained": "openai"},
        tasks=[{"name": name} for name in names],
    )  # fmt: skip
    found = {paper.strategy: paper.metrics for paper in published(result)}
    assert found["rail"] == {
        "x_tail_transfer": 62.4, "x_tail_average": 70.7, "x_tail_last": 79.1,
    }  # fmt: skip


def test_every_published_line_names_a_strategy_a_scenario_and_a_source() -> None:
    text = files("cl_clipfit.report").joinpath("published.csv").read_text(encoding="utf-8")
    registry = Registry()
    strategies = {entry.name for entry in registry.entries("strategies")}
    scenarios = {entry.name for entry in registry.entries("scenarios")}
    for row in csv.DictReader(text.splitlines()):
        assert row["strategy"] in strategies, row
        assert row["scenario"] in scenarios, row
        assert row["source"]
        assert all(0 < float(value) < 100 for value in row["metrics"].split())
