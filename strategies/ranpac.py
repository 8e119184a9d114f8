"""RanPAC: ridge regression on random features of frozen image features."""

from cl_clipfit import RandomRidgeStrategy

NAME = "ranpac"
PAPER = "McDonnell et al. 2023, arXiv 2307.02251 (NeurIPS), eq. 6 and 7, without adapters"
NEEDS = "sums of random features and their products (statistics)"
PUBLISHED = {"width": 10_000}


class RanPAC(RandomRidgeStrategy):
    """Class prototypes, decorrelated by the second moment of random features; without text.

    The paper chooses the penalty on a fifth of each task's images; here exact leave-one-out errors
    choose it, summed over the stream.
    """
