"""Three values of the setting that matters most to a method, on held-out training images.

    python -m benchmarks.tries --output runs/tries > docs/results/defaults.md

The setting is the learning rate, or the strength of what a method adds to one that it trains. The
same budget for each: a third of the default, the default, and three times it, on both bundled
streams in a class order that no table reports (seed:11), with seed 100. A quarter of the training
images is held out and scored; no test image is. The best mean of average accuracy over the two
streams is the default from then on. Runs that are finished in the output folder are read.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cl_clipfit import RunConfig, run
from cl_clipfit.registry import Entry, Registry

STREAMS = ("split-digits", "split-shapes100")
CHOSEN_BEFORE = ("full", "clipfit", "coop", "kgcoop", "linear-head")  # docs/clipfit.md
STRENGTHS = {
    "der-pp": "alpha",
    "ewc": "hold",
    "l2-sp": "pull",
    "lwf": "distil",
    "pace": "consistency",
}
FACTORS = (1 / 3, 1.0, 3.0)
ORDER, SEED, HELD_OUT = "seed:11", 100, 0.25


def settings(entry: Entry) -> list[str]:
    """Return what to try for a strategy, `lr=1e-03` for instance; [] if nothing is."""
    key = STRENGTHS.get(entry.name, "lr")
    if key == "lr":
        default = entry.about.get("RECIPE", {}).get("lr")
    else:
        default = entry.options_class().model_fields[key].default
    if default is None or entry.name in CHOSEN_BEFORE:
        return []
    return [f"{key}={default * factor:.0e}" for factor in FACTORS]


def average(stream: str, label: str, output: Path) -> float:
    """Return the average accuracy of a method on held-out images, in percent."""
    (result,) = run(
        RunConfig(
            scenario=stream, strategy=[label], class_order=ORDER, seed=[SEED],
            validation=HELD_OUT, probe=[], output=output,
        )
    )  # fmt: skip
    accuracy = result.metrics["average_accuracy"]
    assert accuracy is not None
    return accuracy


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--strategies", nargs="+", help="default: all that have such a setting")
    parser.add_argument("--output", type=Path, default=Path("runs/tries"))
    given = parser.parse_args(arguments)
    registry = Registry()
    entries = registry.entries("strategies")
    print(f"| strategy | setting | {' | '.join(STREAMS)} | mean | |")
    print(f"| --- | ---: | {'---: | ' * (len(STREAMS) + 1)}--- |")
    for entry in entries:
        if given.strategies and entry.name not in given.strategies:
            continue
        tried = {
            setting: [
                average(stream, f"{entry.name}:{setting}", given.output) for stream in STREAMS
            ]
            for setting in settings(entry)
        }
        best = max(tried, key=lambda setting: sum(tried[setting]), default=None)
        for setting, found in tried.items():
            cells = [f"{value:.1f}" for value in (*found, sum(found) / len(found))]
            mark = "chosen" if setting == best else ""
            print(f"| {entry.name} | {setting} | {' | '.join(cells)} | {mark} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
