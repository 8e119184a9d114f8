"""Random features: a fixed random projection with a rectifier, from a recorded seed."""

import torch
from torch import Tensor


def random_projection(dim: int, width: int, seed: int) -> Tensor:
    """Return R (dim, width) of standard normal values, the same for a seed on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(dim, width, generator=generator, dtype=torch.float32)


def random_features(features: Tensor, projection: Tensor) -> Tensor:
    """Return relu(x R) / sqrt(D) of features (N, D): (N, M), RanPAC (McDonnell et al. 2023, eq. 6).

    The division keeps the size of a feature of unit length; RanPAC's ridge penalty, which is chosen
    for the data, absorbs it.
    """
    return (features @ projection).relu() / features.shape[1] ** 0.5
