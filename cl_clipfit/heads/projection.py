"""Random features: a fixed random projection with a rectifier or a cosine, from a recorded seed."""

import math

import torch
from torch import Tensor


def random_projection(dim: int, width: int, seed: int) -> Tensor:
    """Return R (dim, width) of standard normal values, the same for a seed on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(dim, width, generator=generator, dtype=torch.float32)


def random_features(features: Tensor, projection: Tensor) -> Tensor:
    """Return relu(x R) / sqrt(D) of features (N, D): (N, M), RanPAC (McDonnell et al. 2023, eq. 6).

    After the division, which RanPAC's ridge penalty absorbs, the length of a feature of unit length
    is about sqrt(M / (2 D)).
    """
    return (features @ projection).relu() / features.shape[1] ** 0.5


def fourier_features(features: Tensor, projection: Tensor, sigma: float, seed: int) -> Tensor:
    """Return sqrt(2 / M) cos(x R / sigma + b) of features (N, D): (N, M).

    Rahimi and Recht 2007: their inner products approximate exp(-|x - y|^2 / (2 sigma^2)).

    Args:
        features: (N, D).
        projection: R (D, M), from `random_projection`.
        sigma: the width of the kernel.
        seed: of the phases b, which are uniform over a period.
    """
    generator = torch.Generator().manual_seed((seed + 1) % 2**63)  # not the draws of R
    phases = 2 * math.pi * torch.rand(projection.shape[1], generator=generator)
    return (features @ projection / sigma + phases).cos() * (2 / len(phases)) ** 0.5
