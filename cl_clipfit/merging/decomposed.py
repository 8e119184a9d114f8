"""Fuse two matrices in the singular basis of the first, each entry by how much it changed."""

import torch
from torch import Tensor


def decomposed_fusion(old: Tensor, new: Tensor, bias: float) -> Tensor:
    """Return U (M * U'W_new + (1 - M) * U'W_old), with W_old = U S V'.

    RAPF (Huang et al. 2024, arXiv 2407.14143): the entry of M is min(1, D / max(D) + bias), where D
    is the change |U'W_new - U'W_old|. What changed most is taken over, of the rest a share of at
    least `bias`.

    Args:
        old: W_old (d, d).
        new: W_new (d, d).
        bias: b, from 0 to 1.

    Example:
        >>> old, new = torch.diag(torch.tensor([2.0, 1.0])), torch.tensor([[4.0, 0.0], [1.0, 1.0]])
        >>> decomposed_fusion(old, new, 0.25)
        tensor([[4.0000, 0.0000],
                [0.7500, 1.0000]])
    """
    # Singular values of a matrix near the identity are close to each other: fp64 tells them apart.
    basis = torch.linalg.svd(old.double()).U
    before, after = basis.T @ old.double(), basis.T @ new.double()
    change = (after - before).abs()
    if not change.any():
        return new
    share = (change / change.max() + bias).clamp(max=1)
    return (basis @ (share * after + (1 - share) * before)).to(new)
