"""Every strategy on the bundled streams, as one Markdown table per stream.

    python -m benchmarks.methods --seeds 0 1 2 --output runs/methods > docs/results/bundled.md

Runs that are finished in the output folder are read, not repeated.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cl_clipfit import Result, RunConfig, run
from cl_clipfit.registry import Registry
from cl_clipfit.report.baselines import MARK, below_baselines
from cl_clipfit.report.tables import cell

STREAMS = ("split-digits", "split-shapes100")
COLUMNS = {
    "average": "average_accuracy",
    "last": "last_accuracy",
    "forgetting": "forgetting_all_classes",
    "retention": "retention",
}


def row(label: str, results: Sequence[Result], below: bool = False) -> str:
    """Return the row of a strategy: means and 95 % intervals over its seeds, in percent.

    A strategy whose last accuracy is below zero-shot CLIP's, class means' or LDA's has a mark.
    """
    contents = [result.content for result in results]
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


def table(stream: str, labels: Sequence[str], seeds: Sequence[int], output: Path) -> str:
    """Run strategies on a stream and return their rows, best average accuracy first."""
    results = run(RunConfig(scenario=stream, strategy=labels, seed=seeds, output=output))
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.label, []).append(result)
    order = sorted(
        groups, key=lambda n: -sum(r.metrics["average_accuracy"] or 0.0 for r in groups[n])
    )
    below = below_baselines({n: [r.content for r in runs] for n, runs in groups.items()})
    names = ("strategy", *COLUMNS, "seconds", "parameters", "keeps of old tasks")
    rule = "| --- |" + " ---: |" * (len(names) - 2) + " --- |"
    head = [f"## {stream}", "", f"| {' | '.join(names)} |", rule]
    return "\n".join([*head, *(row(name, groups[name], name in below) for name in order), ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", nargs="+", default=STREAMS)
    parser.add_argument("--strategies", nargs="+", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/methods"))
    given = parser.parse_args(arguments)
    labels = given.strategies or [entry.name for entry in Registry().entries("strategies")]
    for stream in given.streams:
        print(table(stream, labels, given.seeds, given.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
