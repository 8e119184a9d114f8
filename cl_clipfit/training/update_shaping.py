"""Shape the update of a step: masks, and projections on the null space of old inputs.

They act on what a step changed, not on its gradient: Adam divides each entry of a projected or
masked gradient by its own scale, momentum repeats earlier ones, and weight decay moves every entry.
"""

import torch
from torch import Tensor


def largest_entries(scores: Tensor, count: int) -> Tensor:
    """Return a mask, of the shape of `scores`, of the `count` entries of largest size.

    Of entries of equal size any may be chosen, but exactly `count` are.

    Example:
        >>> largest_entries(torch.tensor([[0.5, -3.0], [1.0, 0.0]]), 2).tolist()
        [[False, True], [True, False]]
    """
    flat = scores.abs().flatten()
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.topk(min(count, len(flat))).indices] = True
    return mask.view(scores.shape)


def masked(before: Tensor, after: Tensor, mask: Tensor) -> Tensor:
    """Return `after` where the mask is True, and `before`, bit for bit, elsewhere."""
    return torch.where(mask, after, before)


def projected(before: Tensor, after: Tensor, basis: Tensor, inputs_first: bool = False) -> Tensor:
    """Return weights after an update that leaves outputs for inputs in span(basis) unchanged.

    before + D (1 - U U^T), of D = after - before: x (D (1 - U U^T))^T = 0 for every x = U a (Qiao
    et al. 2024, arXiv 2405.13383, who project the gradient).

    Args:
        before: (out, in), or (in, out) if `inputs_first`.
        after: of the same shape.
        basis: U (in, r), with orthonormal columns.
        inputs_first: whether outputs are x @ weight, as of CLIP's projections.
    """
    update = after - before
    if inputs_first:
        return before + (update - basis @ (basis.T @ update))
    return before + (update - (update @ basis) @ basis.T)


def principal_directions(moment: Tensor, energy: float) -> Tensor:
    """Return the fewest principal directions that hold a share of the energy of inputs: (d, r).

    Args:
        moment: (d, d), the mean or sum of x x^T; not centred.
        energy: share of the trace. 1 takes every direction that float32 tells from 0, so that
            exactly the null space of the inputs is left.
    """
    values, vectors = torch.linalg.eigh(moment.double())
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    shares = values.cumsum(0) / values.sum().clamp_min(torch.finfo(torch.float64).tiny)
    enough = int((shares < energy - 1e-12).sum()) + 1
    noise = torch.finfo(torch.float32).eps * float(values[0])
    rank = int((values > noise).sum())
    return vectors[:, : min(enough, rank)].to(moment.dtype)
