"""RanPAC: ridge regression on random features of the image tower, frozen or tuned on one task."""

from pydantic import Field

from cl_clipfit import AfterFirstSession, RandomFeaturesOptions, RandomRidgeStrategy

NAME = "ranpac"
GROUP = "closed-form heads"
PAPER = "McDonnell et al. 2023, arXiv 2307.02251 (NeurIPS), eq. 6 and 7; phase 1: first_session"
NEEDS = "sums of random features and their products (statistics)"
PUBLISHED = {"width": 10_000}


class RanPACOptions(RandomFeaturesOptions):
    """Settings of RanPAC; other settings of its label go to the method of the first session."""

    first_session: str = Field(
        "none", description="the method that tunes the image tower on the first task"
    )


class RanPAC(AfterFirstSession, RandomRidgeStrategy):
    """Class prototypes, decorrelated by the second moment of random features; without text.

    The paper chooses the penalty on a fifth of each task's images; here exact leave-one-out errors
    choose it, summed over the stream.
    """

    options_class = RanPACOptions
    extends = True
