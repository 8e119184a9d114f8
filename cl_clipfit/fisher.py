"""The diagonal of the Fisher information: how much a classifier's answers hang on each weight."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from cl_clipfit.strategy import CLIPStrategy


def diagonal_fisher(
    strategy: "CLIPStrategy", images: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the mean squared gradient of the log-likelihood at the current weights.

    Labels are drawn from the model's own distribution over the strategy's label space: the true
    Fisher, not the empirical one (Martens 2020, arXiv 1412.1193, section 5).

    Args:
        strategy: its selection and label space are used; it is in the middle of a task.
        images: (N, 3, H, W); one at a time, since a square of a mean is no mean of squares.
        generator: draws the labels.

    Returns:
        a tensor as every selected one, at least 0.
    """
    names, parameters = zip(*strategy.selection.items(), strict=True)
    totals = [torch.zeros_like(p) for p in parameters]
    for image in images.split(1):
        logits = strategy.training_logits(image.to(strategy.device))
        odds = logits.detach().softmax(1).cpu()
        label = torch.multinomial(odds, 1, generator=generator)[:, 0].to(logits.device)
        loss = F.cross_entropy(logits, label)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for total, gradient in zip(totals, gradients, strict=True):
            if gradient is not None:
                total += gradient.square()
    return {n: total / len(images) for n, total in zip(names, totals, strict=True)}
