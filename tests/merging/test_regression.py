"""RegMean of LayerNorms and biases against least squares on raw inputs in NumPy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cl_clipfit import merging
from cl_clipfit.merging import Moments
from tests.support.norms import least_squares

WIDTH, ROWS = 6, 40


def draw(seed: int) -> dict[str, Tensor]:
    """Return values of a LayerNorm, of a lone bias and of a matrix."""
    draws = torch.Generator().manual_seed(seed)
    shapes = {"x.weight": (WIDTH,), "x.bias": (WIDTH,), "mlp.bias": (3,), "proj": (2, 5)}
    return {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}


def inputs(seed: int) -> np.ndarray:
    """Return inputs (rows, width) whose channels have means of their own."""
    draws = np.random.default_rng(seed)
    return draws.normal(draws.normal(size=WIDTH), draws.uniform(0.3, 2, WIDTH), (ROWS, WIDTH))


def moments_of(rows: np.ndarray, images: int = 1) -> Moments:
    means, squares = (torch.tensor(m.mean(0)).float() for m in (rows, rows**2))
    return Moments(images, {"x": means}, {"x": squares})


@pytest.mark.parametrize("off_diagonal", [1.0, 0.9, 0.0])
def test_a_norm_is_the_least_squares_fit_to_the_outputs_of_all_tasks(off_diagonal: float) -> None:
    tasks, seen = [draw(1), draw(2)], [inputs(3), inputs(4)]
    counts = [1, 3]
    merged = merging.regmean(
        tasks, [moments_of(x, n) for x, n in zip(seen, counts, strict=True)], off_diagonal
    )
    rows = [np.tile(x, (n, 1)) for x, n in zip(seen, counts, strict=True)]
    weights, biases = (
        [t[f"x.{kind}"].double().numpy() for t in tasks] for kind in ("weight", "bias")
    )
    expected = least_squares(rows, weights, biases, off_diagonal)
    for kind, wanted in zip(("weight", "bias"), expected, strict=True):
        np.testing.assert_allclose(merged[f"x.{kind}"], wanted, rtol=0, atol=1e-6)
        average = merging.mean(tasks)[f"x.{kind}"].numpy()
        assert np.abs(wanted - average).max() > 0.05
    for name in ("mlp.bias", "proj"):
        torch.testing.assert_close(merged[name], 0.25 * tasks[0][name] + 0.75 * tasks[1][name])


def test_a_norm_by_hand() -> None:
    """One channel: y = x at 0 and 2, and y = 3 at 1 and 3; of the sums, 14/4 and 6/4."""
    tasks = [
        {"x.weight": torch.tensor([1.0]), "x.bias": torch.tensor([0.0])},
        {"x.weight": torch.tensor([0.0]), "x.bias": torch.tensor([3.0])},
    ]
    known = [moments_of(np.array([[0.0], [2.0]])), moments_of(np.array([[1.0], [3.0]]))]
    # x = 0, 2, 1, 3 and y = 0, 2, 3, 3: slope 4 / 5, through the means (1.5, 2).
    merged = merging.regmean(tasks, known, off_diagonal=1.0)
    assert merged["x.weight"].item() == pytest.approx(0.8)
    assert merged["x.bias"].item() == pytest.approx(0.8)


def test_equal_tasks_and_equal_moments() -> None:
    tasks, known = [draw(1), draw(2), draw(3)], moments_of(inputs(4))
    same = merging.regmean([tasks[0]] * 3, [moments_of(inputs(s), s) for s in (5, 6, 7)])
    assert list(same) == list(tasks[0])
    assert all(torch.equal(value, tasks[0][name]) for name, value in same.items())
    mean = merging.mean(tasks)
    for name, value in merging.regmean(tasks, [known] * 3).items():
        torch.testing.assert_close(value, mean[name], rtol=0, atol=1e-6)
    ordered = merging.regmean(tasks, [moments_of(inputs(s), s) for s in (5, 6, 7)])
    turned = merging.regmean(tasks[::-1], [moments_of(inputs(s), s) for s in (7, 6, 5)])
    for name, value in ordered.items():
        torch.testing.assert_close(value, turned[name], rtol=0, atol=1e-6)


def test_a_constant_channel_does_not_get_huge_values() -> None:
    """Inputs near 10 whose means differ a little, and one that is always 0."""
    draws = np.random.default_rng(0)
    seen = [np.stack([draws.normal(mean, 1e-4, ROWS), np.zeros(ROWS)], 1) for mean in (10, 10.01)]
    tasks = [{"x.weight": torch.tensor([w, w]), "x.bias": torch.zeros(2)} for w in (1.0, 1.1)]
    exact, shrunk = (
        merging.regmean(tasks, [moments_of(x) for x in seen], share) for share in (1.0, 0.9)
    )
    weight, bias = shrunk["x.weight"], shrunk["x.bias"]
    assert ((weight >= 1.0) & (weight <= 1.1)).all()
    assert bias.abs().max() < 0.05
    assert weight[1].item() == pytest.approx(1.05)  # no input tells the tasks apart
    # Without shrinking, the line through (10, 10) and (10.01, 11.011) has the slope 101: within
    # the rounding of the moments it is singular, and the mean stays.
    torch.testing.assert_close(exact, merging.mean(tasks))


def test_a_norm_of_which_one_part_trains_gets_the_mean() -> None:
    tasks = [{"x.bias": torch.tensor([1.0, 2.0])}, {"x.bias": torch.tensor([3.0, -2.0])}]
    known = [moments_of(inputs(1)[:, :2]), moments_of(inputs(2)[:, :2])]
    torch.testing.assert_close(merging.regmean(tasks, known), merging.mean(tasks))


@pytest.mark.parametrize(
    ("known", "more", "message"),
    [
        ([moments_of(inputs(1))], {}, "2 sets of values with 1 moments"),
        ([moments_of(inputs(1))] * 2, {"off_diagonal": 1.1}, "off_diagonal 1.1 must be from 0"),
        ([moments_of(inputs(1)), moments_of(inputs(1) * math.nan)], {}, "the moments of x are NaN"),
        ([moments_of(inputs(1)), Moments(1, {}, {})], {}, "tensor x is missing in set 2"),
    ],
)
def test_bad_input_is_one_line(known: Any, more: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merging.regmean([draw(1), draw(2)], known, **more)
