"""Every strategy on the bundled streams, as one Markdown table per stream and class order.

    python -m benchmarks.methods --streams split-shapes100 --seeds 0 1 2

The numbers of every run are appended to a file of records, a line of JSON each. What it has is not
run again, so that a table can grow over many sittings and machines; the tables are made of it.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cl_clipfit import RunConfig, run
from cl_clipfit.registry import Registry
from cl_clipfit.report.baselines import MARK, below_baselines
from cl_clipfit.report.tables import cell

STREAMS = ("split-digits", "split-shapes100")
DEFAULT = "default"  # class order: that of the stream
RECORDS = Path("docs/results/runs.jsonl")
COLUMNS = {
    "average": "average_accuracy",
    "last": "last_accuracy",
    "forgetting": "forgetting_all_classes",
    "retention": "retention",
    "joint": "joint_accuracy",
    "joint retention": "joint_retention",
}


def record(content: dict[str, Any], stream: str, order: str) -> dict[str, Any]:
    """Return the part of `result.json` that the tables need, in its own form, and what was run."""
    return {
        "scenario": stream,
        "order": order,
        "label": content["label"],
        "seed": content["seed"],
        "metrics": {name: content["metrics"].get(name) for name in COLUMNS.values()},
        "curves": {"zero_shot": content["curves"]["zero_shot"][-1:]},
        "timings": {"train_seconds": [round(sum(content["timings"]["train_seconds"]), 1)]},
        "model": {"trainable_parameters": content["model"]["trainable_parameters"]},
        "kept": {"what": content["kept"]["what"]},
        "code": content["environment"]["cl_clipfit_sha256"],
    }


def read_records(file: Path) -> dict[tuple[str, str, str, int], dict[str, Any]]:
    """Return the records of a file by stream, class order, label and seed."""
    lines = file.read_text().splitlines() if file.exists() else []
    records = [json.loads(line) for line in lines]
    return {(r["scenario"], r["order"], r["label"], r["seed"]): r for r in records}


def run_missing(
    file: Path, stream: str, orders: Sequence[str], labels: Sequence[str], seeds: Sequence[int],
    output: Path, model: str | None = None,
) -> None:  # fmt: skip
    """Run what a file has no record of, and append a record as each run ends."""
    have = read_records(file)
    wanted = [(order, label, seed) for seed in seeds for order in orders for label in labels]
    for order, label, seed in wanted:
        if (stream, order, label, seed) in have:
            continue
        config = RunConfig(
            scenario=stream,
            strategy=[label],
            seed=[seed],
            class_order=[order] * (order != DEFAULT),
            model=model,
            output=output,
        )
        for result in run(config):
            with file.open("a") as lines:
                lines.write(json.dumps(record(result.content, stream, order)) + "\n")


def row(label: str, contents: Sequence[dict[str, Any]], below: bool = False) -> str:
    """Return the row of a strategy: means and 95 % intervals over its seeds, in percent.

    A strategy whose last accuracy is below zero-shot CLIP's, class means' or LDA's has a mark.
    """
    metrics = [cell([c["metrics"][name] for c in contents]) for name in COLUMNS.values()]
    seconds = [sum(c["timings"]["train_seconds"]) for c in contents]
    mean = sum(seconds) / len(seconds)
    parameters = f"{contents[0]['model']['trainable_parameters']:,}"
    cells = (
        f"{label} {MARK}" if below else label,
        *metrics,
        f"{mean:.0f}",
        parameters,
        contents[0]["kept"]["what"],
    )
    return f"| {' | '.join(cells)} |"


def table(title: str, contents: Iterable[dict[str, Any]]) -> str:
    """Return a table of strategies, best average accuracy first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for content in contents:
        groups.setdefault(content["label"], []).append(content)
    order = sorted(
        groups,
        key=lambda n: -fmean(r["metrics"]["average_accuracy"] or 0.0 for r in groups[n]),
    )
    below = below_baselines(groups)
    names = ("strategy", *COLUMNS, "seconds", "parameters", "keeps of old tasks")
    rule = "| --- |" + " ---: |" * (len(names) - 2) + " --- |"
    head = [f"## {title}", "", f"| {' | '.join(names)} |", rule]
    return "\n".join([*head, *(row(name, groups[name], name in below) for name in order), ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what has no record yet, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", nargs="+", default=STREAMS)
    parser.add_argument("--orders", nargs="+", default=[DEFAULT], help="class orders")
    parser.add_argument("--strategies", nargs="+", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", help="default: that of each stream")
    parser.add_argument("--output", type=Path, default=Path("runs/methods"))
    parser.add_argument("--records", type=Path, default=RECORDS)
    given = parser.parse_args(arguments)
    labels = given.strategies or [entry.name for entry in Registry().entries("strategies")]
    for stream in given.streams:
        run_missing(
            given.records, stream, given.orders, labels, given.seeds, given.output, given.model
        )
    records = read_records(given.records)
    for stream in given.streams:
        for order in given.orders:
            rows = [records[key] for key in sorted(records) if key[:2] == (stream, order)]
            print(table(stream if order == DEFAULT else f"{stream}, order {order}", rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
