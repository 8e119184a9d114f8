"""`make bench`: the quick benchmarks in one JSON object."""

import importlib

from benchmarks import quick


def test_each_benchmark_reports_under_its_name() -> None:
    few = ("--model", "mini", "--tasks", "2", "--batch-size", "2", "--repeats", "1", "--json")
    found = quick.measure({"mixed_batch": few})
    assert found["mixed_batch"]["tasks"] == 2
    assert set(found["mixed_batch"]["seconds"]) == {"mixed", "loop", "plain"}


def test_benchmarks_of_these_names_exist() -> None:
    assert all(importlib.import_module(f"benchmarks.{name}").main for name in quick.BENCHMARKS)
