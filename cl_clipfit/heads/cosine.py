"""A classifier by cosines: one direction per class, trained from the mean of its features."""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.enable_grad()
def cosine_rows(
    features: Tensor, targets: Tensor, classes: int, *, lr: float, epochs: int, batch_size: int,
    draws: torch.Generator,
) -> Tensor:  # fmt: skip
    """Train one vector per class by cross-entropy on cosines, without a temperature.

    The visual classifier of MG-CLIP (Huang et al. 2025, arXiv 2507.09118), as in its code: Adam,
    whose learning rate falls to 1 % along a cosine.

    Args:
        features: (N, d), unit length.
        targets: (N,), each of 0 to `classes` - 1 at least once.
        classes: number of classes.
        lr: the first learning rate.
        epochs: passes over the features.
        batch_size: features per step.
        draws: the order of the features.

    Returns:
        (classes, d); only their directions count.
    """
    rows = torch.stack([features[targets == i].mean(0) for i in range(classes)]).requires_grad_()
    adam = torch.optim.Adam([rows], lr=lr)
    steps = epochs * -(-len(features) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, eta_min=lr / 100)
    for _ in range(epochs):
        for batch in torch.randperm(len(features), generator=draws).split(batch_size):
            chosen = batch.to(features.device)
            cosines = features[chosen] @ F.normalize(rows, dim=-1).T
            adam.zero_grad()
            F.cross_entropy(cosines, targets[chosen]).backward()
            adam.step()
            schedule.step()
    return rows.detach()
