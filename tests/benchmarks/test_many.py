"""`benchmarks.many` in little: what it builds is right, and the bank is gone afterwards."""

import json
from pathlib import Path

import pytest

from benchmarks import many


def test_few_deltas_and_classes_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "LOOKED_UP", 20)
    monkeypatch.setattr(many, "ON_DISK", 2)
    monkeypatch.setattr(many, "AT_A_TIME", 16)
    few = ["--deltas", "40", "--classes", "50", "--width", "24", "--values", "3"]
    many.main([*few, "--folder", str(tmp_path), "--allocator", "system", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert not list(tmp_path.iterdir())
    bank = found["bank"]
    assert bank["right"] and (bank["deltas"], bank["index_files"]) == (40, 1)
    assert bank["index_bytes"] > 40 * 64 and not bank["in_memory"]
    assert bank["seconds_of_an_append_on_disk"] > 0
    for rule in ("nearest-mean", "gaussian"):
        assert found["routing"][rule]["right"] == 1
    assert found["statistics"]["right"] == {"class_means": 1, "lda": 1}
    assert found["statistics"]["bytes"] == 8 * (24 * 24 + 50 * 24 + 50)
    names = {"append", "open", "look_up", "statistics", "fit_lda", "route_gaussian"}
    assert names < set(found["stages"])
    assert all(s["seconds"] > 0 and s["peak_bytes"] > 0 for s in found["stages"].values())


def test_too_many_are_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        many.main(["--deltas", "1000000"])
    assert "must be 262144 or less" in capsys.readouterr().err
