"""What the modes of a bank are called and can be told; light, so that `--help` is quick."""

from typing import Annotated

from pydantic import Field

from cl_clipfit.config.options import NotNegative, Number, Options, Positive, Seed

CLOSED_FORM = ("latest", "mean", "sum", "wise", "ties", "dare", "magmax")
"""Modes that need the values of the tasks alone."""

MODES = (*CLOSED_FORM, "fisher", "oracle", "routed")
"""`fisher` needs training images too; `oracle` and `routed` choose weights for each image."""


class ModeSettings(Options):
    """What the modes can be told. A delta is a task's values minus the pretrained ones."""

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
        256, description="fisher: training images of a task that it is estimated from"
    )
    seed: Seed = Field(0, description="of the draws of dare and fisher")
