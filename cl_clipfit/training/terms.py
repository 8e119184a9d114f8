"""The terms of a step's loss as numbers, for a screen or a history."""

from collections.abc import Mapping

import torch
from torch import Tensor


def read_terms(loss: Tensor, terms: Mapping[str, Tensor], plugins: Tensor) -> dict[str, float]:
    """Return "loss" and its terms by name; one copy to the host, which waits for the device.

    What a method does not name is not shown: the terms may add up to less than the loss.

    Args:
        loss: scalar.
        terms: scalars, each weighted as it is added to the loss.
        plugins: what Avalanche's plug-ins added; left out if it is 0.

    Example:
        >>> one = torch.ones(())
        >>> read_terms(3 * one, {"cross-entropy": one}, 2 * one)
        {'loss': 3.0, 'cross-entropy': 1.0, 'plug-ins': 2.0}
    """
    named = {"loss": loss, **terms, "plug-ins": plugins}
    values = [value.detach().to(loss.device, torch.float32).reshape(()) for value in named.values()]
    numbers = dict(zip(named, torch.stack(values).tolist(), strict=True))
    if numbers["plug-ins"] == 0:
        del numbers["plug-ins"]
    return numbers
