"""Which methods of a comparison end below the simplest ones: zero-shot, class means, LDA."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

BASELINES = ("zero-shot", "simplecil", "lda")
MARK = "*"


def below_baselines(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[str]]:
    """Return, by label, the baselines whose last accuracy is above that of a method.

    Zero-shot CLIP is known from every run; class means (`simplecil`) and LDA only if they are
    among the methods.

    Args:
        groups: the results of each method, by its label.

    Example:
        >>> run = {"metrics": {"last_accuracy": 60.0}, "curves": {"zero_shot": [None, 65.0]}}
        >>> below_baselines({"mine": [run]})
        {'mine': ['zero-shot']}
    """
    last = {label: _last(group) for label, group in groups.items()}
    found = {}
    for label, group in groups.items():
        if label in BASELINES:
            continue
        known = {"zero-shot": _zero_shot(group)}
        known |= {name: last[name] for name in BASELINES if name in last}
        own = last[label]
        above = [
            name
            for name, accuracy in known.items()
            if own is not None and accuracy is not None and accuracy > own
        ]
        if above:
            found[label] = above
    return found


def _last(group: Sequence[Mapping[str, Any]]) -> float | None:
    return _mean([result["metrics"].get("last_accuracy") for result in group])


def _zero_shot(group: Sequence[Mapping[str, Any]]) -> float | None:
    return _mean([result["curves"]["zero_shot"][-1] for result in group])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None
