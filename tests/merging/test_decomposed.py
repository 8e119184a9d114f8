"""Fusion in the singular basis, against NumPy."""

import numpy as np
import pytest
import torch

from cl_clipfit.merging import decomposed_fusion

DRAW = torch.Generator().manual_seed(0)
OLD, CHANGE = (torch.randn(5, 5, generator=DRAW, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("bias", [0.0, 0.4])
def test_each_entry_takes_the_share_of_its_change(bias: float) -> None:
    new = OLD + 0.3 * CHANGE
    u, s, vt = np.linalg.svd(OLD.numpy())
    before, after = np.diag(s) @ vt, u.T @ new.numpy()
    change = np.abs(after - before)
    share = np.minimum(change / change.max() + bias, 1)
    assert share.min() < 0.9 and share.max() == 1
    expected = u @ (after * share + before * (1 - share))
    np.testing.assert_allclose(decomposed_fusion(OLD, new, bias), expected, rtol=0, atol=1e-12)
    # In the basis itself, and not of the weights as they are.
    plain = (new - OLD).abs() / (new - OLD).abs().max()
    of_weights = OLD + (new - OLD) * (plain + bias).clamp(max=1)
    assert not torch.allclose(decomposed_fusion(OLD, new, bias), of_weights, atol=1e-3)


def test_the_ends_are_the_new_matrix() -> None:
    torch.testing.assert_close(decomposed_fusion(OLD, OLD + CHANGE, 1.0), OLD + CHANGE)
    assert torch.equal(decomposed_fusion(OLD, OLD.clone(), 0.3), OLD)
