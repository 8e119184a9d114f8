"""Methods over several class orders, from the records of `benchmarks.methods`: two Markdown tables.

    python -m benchmarks.orders --against stack

The first has the mean over class orders with its 95 % interval, the second the differences of one
method to the others, paired by class order. The seeds of an order are averaged before, and a method
is in a table if it has all seeds of every order. One that was asked for and has not is an error.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.methods import COLUMNS, RECORDS, STREAMS, read_records
from cl_clipfit.report.tables import cell

Records = dict[tuple[str, str, str, int], dict[str, Any]]


def by_order(
    records: Records, stream: str, label: str, orders: Sequence[str], seeds: Sequence[int]
) -> dict[str, list[float]]:
    """Return the metrics of a method, in percent: a value per class order, the mean over seeds.

    Metrics that were not measured are left out; all of them if a run is missing.
    """
    runs = [[records.get((stream, order, label, seed)) for seed in seeds] for order in orders]
    found = [[run["metrics"] for run in of_order if run] for of_order in runs]
    if any(len(of_order) < len(seeds) for of_order in found):
        return {}
    values = {
        title: [[metrics[name] for metrics in of_order] for of_order in found]
        for title, name in COLUMNS.items()
    }
    return {
        title: [fmean(of_order) for of_order in measured]
        for title, measured in values.items()
        if all(value is not None for of_order in measured for value in of_order)
    }


def differences(
    one: dict[str, list[float]], other: dict[str, list[float]]
) -> dict[str, list[float]]:
    """Return one minus the other by metric, class order by class order."""
    return {
        title: [a - b for a, b in zip(values, other[title], strict=True)]
        for title, values in one.items()
        if title in other
    }


def table(rows: dict[str, dict[str, list[float]]], signed: bool = False) -> str:
    """Return a table of methods, each with its values per class order by metric."""
    head = ["", *COLUMNS]
    lines = [head, ["---", *["---:"] * len(COLUMNS)]]
    for label, values in rows.items():
        cells = [cell(values[title]) if title in values else "-" for title in COLUMNS]
        sign = ["+" * (signed and text[0].isdigit()) for text in cells]
        lines.append([label, *(a + b for a, b in zip(sign, cells, strict=True))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both tables of every stream."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", nargs="+", default=STREAMS)
    parser.add_argument("--orders", nargs="+", default=["seed:31", "seed:32", "seed:33"])
    parser.add_argument("--strategies", nargs="+", help="default: all that have the records")
    parser.add_argument("--against", default="stack", help="the method of the second table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--records", type=Path, default=RECORDS)
    given = parser.parse_args(arguments)
    records = read_records(given.records)
    for stream in given.streams:
        labels = given.strategies or sorted({key[2] for key in records if key[0] == stream})
        rows = {n: by_order(records, stream, n, given.orders, given.seeds) for n in labels}
        rows = {label: values for label, values in rows.items() if values}
        wanted = {*(given.strategies or ()), given.against} if rows or given.strategies else set()
        if missing := sorted(wanted - rows.keys()):
            parser.error(f"{stream}: no records of every order and seed of {', '.join(missing)}")
        if not rows:
            print(f"## {stream}\n\nno method has records of every order and seed\n")
            continue
        print(f"## {stream}\n\n{table(rows)}\n")
        one = rows.pop(given.against)
        against = {label: differences(one, values) for label, values in rows.items()}
        print(f"{given.against} minus\n\n{table(against, signed=True)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
