"""What is refused or warned of before a task trains."""

from collections.abc import Sequence
from typing import Any

from cl_clipfit.config.options import Options, ScopeOptions


def check_classes(experience: Any) -> Sequence[int]:
    """Return the classes of an experience.

    Raises:
        ValueError: it does not know them.
    """
    classes = getattr(experience, "classes_in_this_experience", None)
    if classes is None:
        raise ValueError(
            "the experience does not know its classes: wrap the benchmark in Avalanche's"
            " with_classes_timeline"
        )
    return sorted(getattr(experience, "task_classes", classes))


def check_labels(experience: Any, classes: Sequence[int], names: Sequence[str]) -> str:
    """Return a warning of a benchmark that changes what labels mean; "" if it does not.

    Args:
        experience: of the task.
        classes: its labels, in order.
        names: of the classes.

    Raises:
        ValueError: a label has no name, or labels start at 0 in every experience.
    """
    benchmark = getattr(experience, "benchmark", None)
    if getattr(benchmark, "class_ids_from_zero_in_each_exp", False):
        raise ValueError(
            "labels start at 0 in every experience, but they index class_names: make the"
            " benchmark without class_ids_from_zero_in_each_exp"
        )
    for label in (classes[0], classes[-1]):
        if not 0 <= label < len(names):
            raise ValueError(f"label {label} has no name: class_names holds {len(names)} names")
    mapping = list(getattr(benchmark, "class_mapping", ()))
    renumbers = getattr(benchmark, "class_ids_from_zero_from_first_exp", False)
    if renumbers and mapping != sorted(mapping):
        return (
            "the benchmark numbers classes in order of arrival: check that class_names follow"
            " it, or make the benchmark without class_ids_from_zero_from_first_exp"
        )
    return ""


def doubt_of_loss(ranked: Sequence[int], options: Options) -> str:
    """Return a warning if a loss ranks one class, and thus teaches nothing; "" if it does not."""
    if len(ranked) != 1:
        return ""
    more = isinstance(options, ScopeOptions) and options.ce_scope == "task"
    return (
        "the cross-entropy of a task that ranks one class is 0, and nothing is learned from"
        f" it: give tasks more classes{', or set ce_scope=seen' if more else ''}"
    )
