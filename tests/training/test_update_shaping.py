"""Masks and projections of updates: by hand, and on one layer trained in plain PyTorch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_clipfit.training.update_shaping import (
    largest_entries,
    masked,
    principal_directions,
    projected,
)

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "sgd with decay": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.05),
    "adam": lambda p: torch.optim.Adam(p, 0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
}


def drift(
    optimizer: str, shape: Callable[[Tensor, Tensor], Tensor] | None, basis: Tensor, old: Tensor,
    inputs_first: bool = False,
) -> tuple[float, float]:  # fmt: skip
    """Train a layer 20 steps on new inputs; return how far outputs move on old and new ones.

    Without `shape`, the gradient is projected instead of the update.
    """
    torch.manual_seed(1)
    new, targets = torch.randn(40, 12), torch.randn(40, 6)
    weight = nn.Parameter(torch.randn(12, 6) if inputs_first else torch.randn(6, 12))

    def output(x: Tensor) -> Tensor:
        return x @ weight if inputs_first else x @ weight.T

    before = [output(x).detach() for x in (old, new)]
    steps = OPTIMIZERS[optimizer]([weight])
    for _ in range(20):
        steps.zero_grad()
        (output(new) - targets).square().mean().backward()
        start = weight.detach().clone()
        if shape is None:
            weight.grad = projected(torch.zeros_like(start), weight.grad, basis, inputs_first)
        steps.step()
        if shape is not None:
            weight.data = shape(start, weight.detach())
    moved = [(output(x) - y).abs().max() for x, y in zip((old, new), before, strict=True)]
    return float(moved[0].detach()), float(moved[1].detach())


@pytest.mark.parametrize("inputs_first", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_outputs_on_old_inputs_stay_if_updates_are_projected(
    optimizer: str, inputs_first: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(50, 5, generator=generator) @ torch.randn(5, 12, generator=generator)
    basis = principal_directions(old.T @ old, 1.0)
    assert basis.shape == (12, 5)

    def shape(before: Tensor, after: Tensor) -> Tensor:
        return projected(before, after, basis, inputs_first)

    stays, learns = drift(optimizer, shape, basis, old, inputs_first)
    assert stays < 1e-4
    assert learns > 0.1
    leaks, _ = drift(optimizer, None, basis, old, inputs_first)  # gradients alone
    assert (leaks < 1e-4) == (optimizer == "sgd")


def test_directions_hold_the_energy_that_is_asked_for() -> None:
    moment = torch.diag(torch.tensor([1.0, 6.0, 3.0, 0.0]))
    for energy, axes in {0.5: [1], 0.6: [1], 0.61: [1, 2], 0.9: [1, 2], 1.0: [1, 2, 0]}.items():
        basis = principal_directions(moment, energy)
        torch.testing.assert_close(basis.abs(), torch.eye(4)[:, axes])
    assert principal_directions(torch.zeros(3, 3), 0.9).shape == (3, 0)


def test_masks_hold_exactly_as_many_entries_as_asked_for() -> None:
    scores = torch.tensor([[1.0, -1.0, 1.0], [0.0, 5.0, -6.0]])
    assert largest_entries(scores, 2).tolist() == [[False] * 3, [False, True, True]]
    assert int(largest_entries(scores, 3).sum()) == 3  # one of three equals
    assert largest_entries(scores, 100).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_exactly_the_masked_entries_move(optimizer: str) -> None:
    torch.manual_seed(2)
    weight = nn.Parameter(torch.randn(6, 12))
    mask = largest_entries(torch.randn(6, 12), 10)
    start = weight.detach().clone()
    steps: Any = OPTIMIZERS[optimizer]([weight])
    for _ in range(5):
        before = weight.detach().clone()
        steps.zero_grad()
        (torch.randn(8, 12) @ weight.T).square().mean().backward()
        steps.step()
        weight.data = masked(before, weight.detach(), mask)
    assert torch.equal(weight != start, mask)
