"""The proximal step on relative distances against a numerical minimiser, and its limits."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from cl_clipfit import merging
from cl_clipfit.merging import Pull, proximal_step

Named = dict[str, Tensor]
SHAPES = {"gain": (3,), "matrix": (2, 3), "scalar": ()}
GROUPS = {"gain": "image", "matrix": "text", "scalar": "image"}


def draw(seed: int, scale: float = 1.0) -> Named:
    generator = torch.Generator().manual_seed(seed)
    return {n: scale * torch.randn(s, generator=generator) for n, s in SHAPES.items()}


def flat(values: Named) -> np.ndarray:
    return torch.cat([value.flatten() for value in values.values()]).double().numpy()


def named(entries: np.ndarray) -> Named:
    result, taken = {}, 0
    for name, shape in SHAPES.items():
        count = int(np.prod(shape))
        result[name] = torch.tensor(entries[taken : taken + count]).reshape(shape).float()
        taken += count
    return result


def pull(weight: float, anchor: Named, reference: Named, fisher: Named | None = None) -> Pull:
    scales = merging.coefficients(anchor, reference, GROUPS, fisher)
    return Pull(anchor, {name: weight * c for name, c in scales.items()})


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [0.02, 0.7, 30.0])
def test_the_step_is_the_minimiser_for_two_anchors(weighted: bool, size: float) -> None:
    values, zero_shot, previous, reference = draw(0), draw(1), draw(2), draw(3)
    fisher = {n: v.square() for n, v in draw(4).items()} if weighted else None
    pulls = [pull(0.4, zero_shot, reference), pull(1.3, previous, reference, fisher)]
    start = flat(values)

    def objective(entries: np.ndarray) -> tuple[float, np.ndarray]:
        x = {n: v.double().requires_grad_() for n, v in named(entries).items()}
        total = 0.4 * merging.distance(x, zero_shot, reference, GROUPS)
        total = total + 1.3 * merging.distance(x, previous, reference, GROUPS, fisher)
        total.backward()
        slope = flat({n: v.grad for n, v in x.items() if v.grad is not None})
        value = float(total.detach()) + ((entries - start) ** 2).sum() / size
        return value, slope + 2 * (entries - start) / size

    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-12})
    step = flat(proximal_step(values, pulls, size))
    np.testing.assert_allclose(step, found.x, atol=2e-3)
    assert objective(step)[0] <= found.fun + 1e-5
    np.testing.assert_allclose(objective(step)[1], 0, atol=1e-4 * max(1, 1 / size))


def test_the_distance_falls_with_the_weight_and_ends_at_the_anchor() -> None:
    values, anchor, reference = draw(0), draw(1), draw(2)
    distances = []
    for weight in (0.0, 0.1, 1.0, 10.0, 1e9):
        step = proximal_step(values, [pull(weight, anchor, reference)], 0.3)
        distances.append(merging.distance(step, anchor, reference, GROUPS).item())
        if weight == 0:
            assert all(torch.equal(step[n], values[n]) for n in values)
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-9 < distances[-2]


def test_many_small_steps_shrink_the_distance_to_the_exponential_of_the_weight() -> None:
    """With rates equal to the weight, sizes that sum to 1 end at exp(-weight) of the distance."""
    values, anchor = draw(0), draw(1)
    pulls = [Pull(anchor, dict.fromkeys(anchor, torch.tensor(0.7)))]
    for _ in range(1000):
        values = proximal_step(values, pulls, 1e-3)
    ratio = merging.length_ratio(values, anchor, draw(0))
    assert ratio == pytest.approx(np.exp(-0.7), rel=1e-3)


def test_what_lies_at_its_anchors_stays_bit_for_bit() -> None:
    values, reference = draw(0), draw(1)
    anchors = [{**draw(seed), "matrix": values["matrix"].clone()} for seed in (2, 3)]
    before = {n: v.clone() for n, v in values.items()}
    step = proximal_step(values, [pull(0.3, anchor, reference) for anchor in anchors], 0.1)
    assert torch.equal(step["matrix"], values["matrix"])
    assert not torch.equal(step["gain"], values["gain"])
    assert all(torch.equal(values[n], before[n]) for n in values)
