"""PEGP: updates of matrices are projected on the null space of the inputs of earlier tasks."""

from typing import Annotated

from pydantic import Field

from cl_clipfit import NullSpaceStrategy, Number, Options

NAME = "pegp"
GROUP = "update shaping"
PAPER = "Qiao et al. 2024, arXiv 2405.13383 (TPAMI 2025)"
NEEDS = "second moments of the inputs of each matrix (statistics), and what its host keeps"
PUBLISHED = {"host": "lora", "energy": 0.9}


class PegpOptions(Options):
    """Settings of PEGP; other settings of its label go to the host."""

    host: str = Field("lora", description="the method whose updates are projected")
    energy: Annotated[float, Number, Field(gt=0, le=1)] = Field(
        0.9, description="share of the energy of old inputs that no update touches; 1: all of it"
    )


class Pegp(NullSpaceStrategy):
    """Train a host; D <- D (1 - U U^T) of the update D of each matrix, U from old inputs x.

    The anti-forgetting condition x D^T = 0 is exact for energy=1. The published method projects the
    gradient: then Adam and weight decay leak, so that the update is projected here. Its code takes
    U from a matrix of samples instead of features, averages the result half and half with a second
    one that is trained without projections, and uses weight decay; none of that is here. The input
    of a bias is constant and that of a LayerNorm's weight has no null space: hosts that train
    those are refused.
    """

    options_class = PegpOptions
