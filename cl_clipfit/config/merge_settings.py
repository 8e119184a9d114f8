"""The modes of using a bank, and their settings; imports little, so that `--help` is fast."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from cl_clipfit.config.options import NotNegative, Number, Options, Positive, Seed
from cl_clipfit.errors import UserError, nearest


class ModeSettings(Options):
    """Settings of the modes; a delta is a task's values minus the pretrained ones."""

    alpha: Annotated[float, Number, Field(ge=0)] = Field(
        0.5, description="wise: share of the last task's weights, zero-shot has the rest"
    )
    scale: NotNegative | None = Field(
        None, description="sum, ties, dare, magmax: factor on the merged delta; default 1, sum 0.3"
    )
    density: Annotated[float, Number, Field(gt=0, le=1)] = Field(
        0.2, description="ties: share of each delta that is kept, the largest"
    )
    drop: Annotated[float, Number, Field(ge=0, lt=1)] = Field(
        0.9, description="dare: share of each delta that is dropped, at random"
    )
    rule: str = Field(
        "gaussian", pattern="^(gaussian|nearest-mean)$",
        description="routed: gaussian (shared covariance) or nearest-mean, of zero-shot features",
    )  # fmt: skip
    shrinkage: Positive = Field(0.1, le=1, description="routed: of the shared covariance")
    images: Annotated[int, Number, Field(ge=1)] = Field(
        256, description="fisher, regmean: training images per task for its estimate"
    )
    seed: Seed = Field(0, description="dare, fisher: seed of the random choices")


# What a mode may need to know of each task's training images: see `commands/evaluate.py`.
ESTIMATES = ("fishers", "moments")


@dataclass(frozen=True)
class Mode:
    """A way to use what the tasks of a bank trained.

    Attributes:
        name: its name on the command line.
        function: its function in `cl_clipfit.merging`; "" if weights are chosen per image.
        takes: arguments of the function, in order: "base" (zero-shot values), "values" (of each
            task), "last" (of the last task), one of `ESTIMATES` (of each task), or names of
            settings.
        reads: other settings that it uses.
        defaults: defaults of settings whose default depends on the mode.
    """

    name: str
    function: str = ""
    takes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    defaults: Mapping[str, float] = field(default_factory=dict)

    @property
    def merges(self) -> bool:
        """Return whether it yields one set of weights."""
        return bool(self.function)

    @property
    def estimate(self) -> str | None:
        """Return which of `ESTIMATES` it takes, if any."""
        return next((name for name in self.takes if name in ESTIMATES), None)

    @property
    def is_closed_form(self) -> bool:
        """Return whether it needs only the bank and the zero-shot values."""
        return self.merges and self.estimate is None

    def settings(self, given: ModeSettings) -> dict[str, Any]:
        """Return the settings that the mode reads, by name."""
        names = [n for n in (*self.takes, *self.reads) if n in ModeSettings.model_fields]
        used = {name: getattr(given, name) for name in names}
        return {n: self.defaults[n] if v is None else v for n, v in used.items()}


_SCALE = {"scale": 1.0}
# A new way to merge is a function in `merging/combine.py` and a line here.
MODES = (
    Mode("latest", "latest", ("values",)),
    Mode("mean", "mean", ("values",)),
    # The unscaled sum of deltas would move much too far.
    Mode("sum", "task_arithmetic", ("base", "values", "scale"), defaults={"scale": 0.3}),
    Mode("wise", "interpolate", ("base", "last", "alpha")),
    Mode("ties", "ties", ("base", "values", "scale", "density"), defaults=_SCALE),
    Mode("dare", "dare", ("base", "values", "scale", "drop", "seed"), defaults=_SCALE),
    Mode("magmax", "magmax", ("base", "values", "scale"), defaults=_SCALE),
    Mode("fisher", "fisher", ("values", "fishers"), reads=("images", "seed")),
    Mode("regmean", "regmean", ("values", "moments"), reads=("images",)),
    Mode("oracle"),
    Mode("routed", reads=("rule", "shrinkage")),
)
BY_NAME = {mode.name: mode for mode in MODES}
ALL = tuple(BY_NAME)
MERGING = tuple(mode.name for mode in MODES if mode.merges)
CLOSED_FORM = tuple(mode.name for mode in MODES if mode.is_closed_form)


def find_mode(name: str, option: str = "--mode", allowed: Sequence[str] = ALL) -> Mode:
    """Return a mode by its name.

    Raises:
        UserError: it is unknown or not allowed.
    """
    if name not in allowed:
        raise UserError(f"{option} {name}: unknown. {nearest(name, allowed)}")
    return BY_NAME[name]


def check_settings(option: str, names: Sequence[str], settings: ModeSettings) -> None:
    """Refuse settings that none of the named modes reads.

    Raises:
        UserError: a setting has no effect; the message names the first.
    """
    read = {key for name in names if name in BY_NAME for key in BY_NAME[name].settings(settings)}
    if idle := sorted(settings.model_fields_set - read):
        raise UserError(f"--{idle[0]} has no effect with {option} {', '.join(names)}: leave it out")
