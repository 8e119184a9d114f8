"""Where the numbers of a report are from: commands, versions, what methods keep, warnings."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.filesize import decimal

from cl_clipfit.config.command import MERGED_FROM, read_config
from cl_clipfit.errors import UserError, printable
from cl_clipfit.storage.result import Content, Result
from cl_clipfit.storage.run_folder import CONFIG

Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # titles of the columns, rows


def command_of(run: Result) -> str:
    """Return the command that repeats a run; "" if its config.yaml cannot be read."""
    try:
        settings = read_config(run.path / CONFIG, (MERGED_FROM,))
    except UserError:
        return ""
    words = ["run.py"]
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        if value is True:
            words.append(f"--{name.replace('_', '-')}")
        elif values and value is not False:
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    origin = run.content.get("merged")
    note = f"  # then merged by {origin['method']}" if origin else ""
    return printable(shlex.join(words)) + note


def commands(runs: Sequence[Result]) -> list[tuple[str, str, str]]:
    """Return label with seed, folder and command of each run."""
    return [
        (f"{run.label}, seed {run.seed}", run.path.name, command_of(run)) for run in runs
    ]  # fmt: skip


def facts(contents: Sequence[Content]) -> list[tuple[str, str]]:
    """Return model, data, prompts and versions; where runs differ, all values."""
    first = contents[0]
    model = first["model"]
    environments = [content.get("environment", {}) for content in contents]
    hardware = ("device", "hardware", "system", "threads")
    versions = [name for name in environments[0] if name not in (*hardware, "cl_clipfit_sha256")]
    orders = {tuple(content["class_order"]) for content in contents}
    return [
        ("model", f"{model['architecture']} ({model['pretrained']}), {model['parameters']:,}"
         f" parameters, weights {model['weights_sha256'][:12]}"),
        ("data", f"{_name(first)}, {len(first['tasks'])} tasks,"
         f" {len(first['class_order'])} classes,"
         f" {sum(t['train_samples'] for t in first['tasks']):,} training and"
         f" {sum(t['test_samples'] for t in first['tasks']):,} {first['scored_on']},"
         f" SHA-256 {first['data']['sha256'][:12]}"),
        ("class orders", str(len(orders))),
        ("prompts", _prompts(first.get("templates") or [])),
        ("seeds", _distinct(content["seed"] for content in contents)),
        ("precision", _distinct(content.get("precision") for content in contents)),
        *((name.replace("_", " "), _distinct(e.get(name) for e in environments))
          for name in hardware),
        ("versions", ", ".join(
            f"{name} {_distinct(e.get(name) for e in environments)}" for name in versions)),
        ("code of cl_clipfit", _distinct(
            str(e.get("cl_clipfit_sha256", "unknown"))[:12] for e in environments)),
    ]  # fmt: skip


def _name(content: Content) -> str:
    return " ".join(filter(None, (content["scenario"], str(content["data"].get("name") or ""))))


def _prompts(templates: Sequence[Any]) -> str:
    own = [one if isinstance(one, str) else " | ".join(map(str, one)) for one in templates]
    return "; ".join(own[:3]) + (f"; {len(own) - 3} more" if len(own) > 3 else "")


def _distinct(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or "-"


def costs(groups: Mapping[str, Sequence[Content]]) -> Table:
    """Return what each method trains, keeps from old tasks, and takes: a row per method."""
    head = (
        "strategy", "trainable parameters", "keeps from old tasks", "its size",
        "images of old tasks", "training", "scoring", "peak memory",
    )  # fmt: skip
    rows = []
    for label, group in groups.items():
        kept = group[0].get("kept") or {}
        size = kept["bytes"][-1] if kept.get("bytes") else 0
        rows.append(
            [
                label,
                f"{group[0]['model']['trainable_parameters']:,}",
                (kept.get("what") or "its state")
                if size
                else "nothing"
                if kept
                else "not recorded",
                decimal(size) if size else "-",
                str(kept.get("exemplars", "not recorded")),
                f"{fmean(sum(r['timings'].get('train_seconds', ())) for r in group):.1f} s",
                f"{fmean(sum(r['timings'].get('eval_seconds', ())) for r in group):.1f} s",
                decimal(max(r["peak_memory_bytes"] for r in group)),
            ]
        )
    return head, rows


def warnings(contents: Sequence[Content]) -> list[str]:
    """Return what the runs warned of, each once, with the methods that did."""
    by_text: dict[str, list[str]] = {}
    for content in contents:
        for text in content["warnings"]:
            by_text.setdefault(text, []).append(content["label"])
    return [f"{', '.join(dict.fromkeys(labels))}: {text}" for text, labels in by_text.items()]
