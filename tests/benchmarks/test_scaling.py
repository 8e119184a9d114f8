"""Two processes share a step and an evaluation pass."""

import json

import pytest

from benchmarks import scaling

TINY = ["--model", "mini", "--batch-size", "4", "--images", "8", "--classes", "2", "--repeats", "1"]


def test_bytes_of_a_step_are_those_of_gradients_and_features(
    capsys: pytest.CaptureFixture[str],
) -> None:
    scaling.main([*TINY, "--threads", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    alone, two = found["processes"]["1"], found["processes"]["2"]
    assert alone["bytes_per_step"] == 0
    gradients = 4 * two["trained_numbers"]
    features = 2 * 4 * 128  # half of the batch, in fp32
    flags = 2 * 2  # of two bytes: after the images, and after the step
    assert two["bytes_per_step"] == gradients + features + flags
    for what in ("step", "cpu", "evaluation"):
        assert 0 < found[f"{what}_efficiency"]["2"] < 5
        assert found[f"{what}_efficiency"]["1"] == 1


def test_a_batch_smaller_than_the_group_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.main([*TINY, "--processes", "8"])
    assert "--batch-size 4 is less than 8 processes" in capsys.readouterr().err
