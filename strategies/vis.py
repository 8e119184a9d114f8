"""VIS: ridge regression on random features of the class tokens of all blocks."""

from cl_clipfit import RandomRidgeStrategy

NAME = "vis"
GROUP = "closed-form heads"
PAPER = "arXiv 2609.37888, without the residual network that it trains on the first task"
NEEDS = "sums of random features and their products (statistics)"
PUBLISHED = {"width": 15_000}


class VIS(RandomRidgeStrategy):
    """As RanPAC, with the class tokens after every block of the image tower beside the feature."""

    extends = True
    class_tokens = 1000  # more blocks than any tower has: all
