"""What the tasks of a bank trained, merged into one set of weights by a mode of the table."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from cl_clipfit import merging
from cl_clipfit.config.merge_settings import CLOSED_FORM, ESTIMATES, Mode, ModeSettings
from cl_clipfit.merging.combine import Values


def merged_values(
    mode: Mode,
    values: Sequence[Values],
    base: Values,
    settings: ModeSettings,
    estimates: Sequence[Any] = (),
) -> dict[str, Tensor]:
    """Merge what tasks 1..t trained into one set of weights.

    Args:
        mode: one that merges.
        values: of each task, in order; read tensor by tensor, so that values that are loaded when
            they are asked for need not all fit into memory.
        base: the values that stand for zero-shot CLIP.
        settings: of the modes.
        estimates: what the mode takes of each task besides: its diagonal Fisher information, or
            its `Moments`.

    Raises:
        ValueError: the mode chooses weights per image.
    """
    if not mode.merges:
        raise ValueError(f"{mode.name} gives no single set of weights: {', '.join(CLOSED_FORM)} do")
    arguments: Mapping[str, Any] = {
        "base": base, "values": values, "last": values[-1],
        **dict.fromkeys(ESTIMATES, estimates), **mode.settings(settings),
    }  # fmt: skip
    return getattr(merging, mode.function)(*(arguments[name] for name in mode.takes))
