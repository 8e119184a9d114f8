"""How the deltas of a bank become one set of weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from cl_clipfit import merging
from cl_clipfit.config.merge_settings import CLOSED_FORM, ModeSettings
from cl_clipfit.errors import UserError
from cl_clipfit.merging import Values


def merged_values(
    mode: str, values: Sequence[Values], base: Values, settings: ModeSettings
) -> dict[str, Tensor]:
    """Merge what tasks 1..t trained into one set of weights.

    Args:
        mode: one of `CLOSED_FORM`.
        values: of each task, in order.
        base: the values that stand for zero-shot CLIP.
        settings: of the modes.

    Raises:
        ValueError: another mode.
    """
    scale = _scale(mode, settings)
    modes: Mapping[str, Callable[[], dict[str, Tensor]]] = {
        "latest": lambda: dict(values[-1]),
        "mean": lambda: merging.mean(values),
        "sum": lambda: merging.task_arithmetic(base, values, scale),
        "wise": lambda: merging.interpolate(base, values[-1], settings.alpha),
        "ties": lambda: merging.ties(base, values, scale, settings.density),
        "dare": lambda: merging.dare(base, values, scale, settings.drop, settings.seed),
        "magmax": lambda: merging.magmax(base, values, scale),
    }
    if mode not in modes:
        raise ValueError(f"{mode} is no closed form of the tasks' values: {', '.join(CLOSED_FORM)}")
    return modes[mode]()


def check_settings(option: str, modes: Sequence[str], settings: ModeSettings) -> None:
    """Refuse settings that none of the modes reads.

    Raises:
        UserError: naming the first of them.
    """
    read = {name for mode in modes for name in used_settings(mode, settings)}
    if idle := sorted(settings.model_fields_set - read):
        shown = ", ".join(modes)
        raise UserError(f"--{idle[0]} has no effect with {option} {shown}: leave it out")


def used_settings(mode: str, settings: ModeSettings) -> dict[str, Any]:
    """Return the settings that a mode reads, by name."""
    reads = {
        "sum": ("scale",), "wise": ("alpha",), "ties": ("scale", "density"),
        "dare": ("scale", "drop", "seed"), "magmax": ("scale",), "fisher": ("images", "seed"),
        "routed": ("rule", "shrinkage"),
    }.get(mode, ())  # fmt: skip
    found = {name: getattr(settings, name) for name in reads}
    return found | ({"scale": _scale(mode, settings)} if "scale" in found else {})


def _scale(mode: str, settings: ModeSettings) -> float:
    """Return the factor on the merged delta; a whole sum of deltas would lead far too far."""
    default = 0.3 if mode == "sum" else 1.0
    return default if settings.scale is None else settings.scale
