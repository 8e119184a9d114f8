"""MERGETUNE is compared with the right points, and intervals are those of paired differences."""

import json

import pytest
from scipy.stats import ttest_rel

from benchmarks import connectivity


def test_without_steps_the_merged_weights_are_points_of_the_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hosts = ["linear-head,merge_epochs=0,tau=0", "linear-head,merge_epochs=0,tau=1"]
    variants = ["mergetune", "beta=0"]
    few = ["--tasks", "2", "--limit", "20", "--seeds", "3", "--threads", "1", "--json"]
    connectivity.main(["--hosts", *hosts, "--variants", *variants, *few])
    found = json.loads(capsys.readouterr().out)["hosts"]
    assert list(found) == hosts
    start, whole = (found[host]["scores"]["mergetune"] for host in hosts)
    assert start["merged"] == start["previous-host"] != start["host"]
    assert whole["merged"] == whole["host"] == whole["wise-ft"] == whole["previous-host"]
    assert whole["ratio"] == pytest.approx([1.0])
    gaps = found[hosts[0]]["differences"]
    assert set(gaps) == {"host", "wise-ft", "previous-host", "beta=0"}
    merged, host = (start[name]["last_accuracy"][0] for name in ("merged", "host"))
    assert gaps["host"]["last_accuracy"] == [pytest.approx(merged - host), None]


def test_intervals_are_those_of_a_paired_test() -> None:
    ours, theirs = [80.0, 82.0, 81.5], [79.0, 78.0, 81.0]
    mean, width = connectivity.interval(ours, theirs)
    assert width is not None
    expected = ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (mean - width, mean + width) == pytest.approx((expected.low, expected.high))
