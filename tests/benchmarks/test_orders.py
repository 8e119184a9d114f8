"""Tables over class orders: means of seeds, intervals over orders, paired differences."""

import json
from pathlib import Path

import pytest

from benchmarks import orders

ACCURACY = {  # of two methods, by class order and seed
    "old": {"seed:1": [50.0, 52.0], "seed:2": [60.0, 62.0]},
    "new": {"seed:1": [53.0, 53.0], "seed:2": [61.0, 67.0]},
    "half": {"seed:1": [70.0, 72.0], "seed:2": [80.0]},
}


def _records(file: Path) -> Path:
    lines = [
        json.dumps(
            {"scenario": "tiny", "order": order, "label": label, "seed": seed,
             "metrics": {"average_accuracy": value, "last_accuracy": None}
             | dict.fromkeys(("forgetting_all_classes", "retention"), 0.0)
             | dict.fromkeys(("joint_accuracy", "joint_retention"))}
        )
        for label, of_order in ACCURACY.items()
        for order, values in of_order.items()
        for seed, value in enumerate(values)
    ]  # fmt: skip
    file.write_text("\n".join(lines) + "\n")
    return file


def test_means_and_paired_differences_are_over_orders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _records(tmp_path / "runs.jsonl")
    command = ["--streams", "tiny", "--orders", "seed:1", "seed:2", "--seeds", "0", "1"]
    assert orders.main([*command, "--against", "new", "--records", str(file)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    cells = {tuple(line.strip("| ").split(" | ")[:3]) for line in rows}
    # Orders have means 51 and 61, 53 and 64; of two values the interval is 6.353 times their
    # distance (Student's t of 12.706, over the root of two, times their standard deviation).
    assert cells >= {("old", "56.0 ± 63.5", "-"), ("new", "58.5 ± 69.9", "-")}
    assert ("old", "+2.5 ± 6.4", "-") in cells  # differences 2 and 3
    assert not [line for line in rows if "half" in line]  # a seed is missing


@pytest.mark.parametrize("asked", [["--against", "half"], ["--strategies", "old", "unknown"]])
def test_a_method_without_all_records_is_named(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _records(tmp_path / "runs.jsonl")
    command = ["--streams", "tiny", "--orders", "seed:1", "seed:2", "--seeds", "0", "1"]
    with pytest.raises(SystemExit) as stopped:
        orders.main([*command, "--against", "old", *asked, "--records", str(file)])
    assert stopped.value.code == 2
    assert f"tiny: no records of every order and seed of {asked[-1]}" in capsys.readouterr().err
