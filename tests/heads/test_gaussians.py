"""Gaussians of classes against NumPy."""

import numpy as np
import pytest
import torch

from cl_clipfit.heads.gaussians import ClassSums, draw

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(40, 4, generator=DRAW) @ torch.randn(4, 4, generator=DRAW) + 2
LABELS = torch.arange(40) % 3 + 5


@pytest.mark.parametrize("shrinkage", [False, True])
def test_means_and_covariances_are_those_of_each_class(shrinkage: bool) -> None:
    sums = ClassSums()
    for start in (0, 7, 30):  # classes arrive in parts
        end = {0: 7, 7: 30, 30: 40}[start]
        sums.add(X[start:end], LABELS[start:end])
    means, factors = sums.gaussians([7, 5], shrinkage)
    for label, mean, factor in zip((7, 5), means, factors, strict=True):
        rows = X[LABELS.eq(label)].double().numpy()
        covariance = np.cov(rows.T)
        if shrinkage:
            outside = ~np.eye(4, dtype=bool)
            added = np.where(outside, covariance[outside].mean(), covariance.diagonal().mean())
            covariance = covariance + added
        np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-5)
        np.testing.assert_allclose(factor @ factor.T, covariance, rtol=1e-3, atol=1e-5)
    restored = ClassSums()
    restored.load_state_dict(sums.state_dict())
    assert all(
        torch.equal(a, b)
        for a, b in zip(restored.gaussians([7, 5], shrinkage), (means, factors), strict=True)
    )


def test_a_class_of_one_image_has_no_spread() -> None:
    sums = ClassSums()
    sums.add(X[:1], LABELS[:1])
    means, factors = sums.gaussians([5], shrinkage=True)
    torch.testing.assert_close(means, X[:1])
    assert factors.abs().max() < 0.01


def test_drawn_features_have_the_moments_of_their_class() -> None:
    sums = ClassSums()
    sums.add(X, LABELS)
    means, factors = sums.gaussians([5, 6], shrinkage=False)
    rows = draw(means, factors, 50_000, torch.Generator().manual_seed(1))
    assert rows.shape == (2, 50_000, 4)
    for own, mean, factor in zip(rows, means, factors, strict=True):
        spread = float((factor @ factor.T).diagonal().max())
        torch.testing.assert_close(own.mean(0), mean, rtol=0, atol=0.03 * spread**0.5)
        found = torch.from_numpy(np.cov(own.numpy().T)).float()
        torch.testing.assert_close(found, factor @ factor.T, rtol=0, atol=0.03 * spread)
