"""The captions of a table of results: what methods keep, and which rows need a remark."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.filesize import decimal

from cl_clipfit.report.baselines import MARK, below_baselines
from cl_clipfit.report.display import literal
from cl_clipfit.report.published import Published

PUBLISHED = "published:"  # marks rows of numbers that were not measured here

Groups = Mapping[str, Sequence[Mapping[str, Any]]]  # results by label


def captions(groups: Groups, others: Sequence[Published] = ()) -> str:
    """Return the captions of a table.

    Args:
        groups: the results of each method, by its label.
        others: published numbers that the table shows as well.
    """
    lines = [_kept(groups), _exemplars(groups), _below(groups), _sources(others)]
    return "\n".join(filter(None, lines))


def _kept(groups: Groups) -> str:
    """Return the caption that says what methods keep from old tasks, beside their weights."""
    sizes, nothing = dict[str, list[str]](), False  # by what is kept: methods may keep the same
    for label, group in groups.items():
        if (kept := group[0].get("kept")) is None:  # of an older version
            continue
        if any(kept["bytes"]):
            what = literal(kept["what"] or "its state")
            sizes.setdefault(what, []).append(f"{literal(label)} {decimal(kept['bytes'][-1])}")
        else:
            nothing = True
    parts = [f"{', '.join(labels)} ({what})" for what, labels in sizes.items()]
    others = ["others nothing" if parts else "nothing"] if nothing else []
    return f"kept from old tasks: {'; '.join([*parts, *others])}" if parts or others else ""


def _exemplars(groups: Groups) -> str:
    """Return the caption that says which methods use images of old tasks, or their features."""
    used = {label: (group[0].get("kept") or {}).get("exemplars") for label, group in groups.items()}
    known = {label: amount for label, amount in used.items() if amount is not None}
    parts = [f"{literal(label)} {amount}" for label, amount in known.items() if amount != "no"]
    if len(parts) < len(known):
        parts.append("others no" if parts else "no")
    return f"uses exemplars: {', '.join(parts)}" if parts else ""


def _below(groups: Groups) -> str:
    """Return the caption that names the methods which end below a simple baseline."""
    below = below_baselines(groups)
    parts = [f"{literal(label)} ({', '.join(names)})" for label, names in below.items()]
    return f"{MARK} last accuracy below a simple baseline: {', '.join(parts)}" if parts else ""


def _sources(others: Sequence[Published]) -> str:
    """Return the caption that says where published numbers are from."""
    sources = dict.fromkeys(paper.source for paper in others)
    return f"{PUBLISHED} not measured here, from {', '.join(sources)}" if sources else ""
