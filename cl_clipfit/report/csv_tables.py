"""Tables as CSV: of a comparison, and of the modes of a bank."""

from collections.abc import Sequence
from typing import Any

from cl_clipfit.errors import printable
from cl_clipfit.report.columns import PROBE, compared, probe_names, value
from cl_clipfit.storage.files import csv_text


def text_cell(text: str) -> str:
    """Return a name as a CSV cell that no spreadsheet runs as a formula.

    A name that starts like a formula gets a leading apostrophe, which marks it as text.

    Example:
        >>> text_cell("=1+1"), text_cell("clipfit")
        ("'=1+1", 'clipfit')
    """
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\n")) else text


def comparison_csv(results: Sequence[dict[str, Any]], folders: Sequence[str]) -> str:
    """Return one line per run with all its metrics, and one for each model it is compared with.

    In the protocol "transfer", every probe has a column.
    """
    names = list(dict.fromkeys(name for r in results for name in r["metrics"]))
    if results[0].get("protocol") == "transfer":
        names += [PROBE + name for name in probe_names(results)]
    rows = []
    for r, folder in zip(results, folders, strict=True):
        scored = {r["label"]: r}
        scored |= {f"{r['label']} / {name}": others[0] for name, others in compared([r]).items()}
        for label, other in scored.items():
            values = [value(other, name) for name in names]
            scenario, strategy = text_cell(r["scenario"]), text_cell(label)
            rows.append([scenario, strategy, r["seed"], *values, text_cell(folder)])
    return csv_text(["scenario", "strategy", "seed", *map(text_cell, names), "folder"], rows)


def modes_csv(modes: Sequence[dict[str, Any]]) -> str:
    """Return one line per mode with all its metrics."""
    names = list(modes[0]["metrics"])
    rows = [
        [
            text_cell(mode["mode"]),
            *(mode["metrics"][name] for name in names),
            mode["chosen_labels"]["metrics"]["last_accuracy"] if "chosen_labels" in mode else None,
        ]
        for mode in modes
    ]
    last = "last_accuracy_labels_of_chosen_task"
    return csv_text(["mode", *map(text_cell, names), last], rows)
