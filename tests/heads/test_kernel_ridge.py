"""Ridge regression in its dual form, against scikit-learn and the primal one."""

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge as SklearnKernelRidge

from cl_clipfit.heads.fusion import reranked
from cl_clipfit.heads.kernel_ridge import KernelRidge
from cl_clipfit.heads.recursive import RecursiveRidge

DRAW = torch.Generator().manual_seed(0)
X, NEW = torch.randn(20, 6, generator=DRAW), torch.randn(5, 6, generator=DRAW)
Y = torch.arange(20) % 3


def learned(gamma: float | None) -> KernelRidge:
    """Return the regression of four classes, one of them without features, from two batches."""
    empty = KernelRidge.empty(6, 4, 0.2, gamma)
    return empty.updated(X[:13], Y[:13]).updated(X[13:], Y[13:])


def test_the_dual_form_is_that_of_scikit_learn() -> None:
    reference = SklearnKernelRidge(alpha=0.2, kernel="rbf", gamma=0.3)
    reference.fit(X.double().numpy(), np.eye(4)[Y.numpy()])
    scores = learned(0.3).head(NEW)
    expected = reference.predict(NEW.double().numpy())
    np.testing.assert_allclose(scores[:, :3], expected[:, :3], rtol=1e-9, atol=1e-12)
    assert (scores[:, 3] == -torch.inf).all()


def test_with_a_linear_kernel_both_forms_are_the_same() -> None:
    primal = RecursiveRidge.empty(6, 4, 0.2).updated(X[:4], Y[:4]).updated(X[4:], Y[4:])
    torch.testing.assert_close(learned(None).head(NEW), primal.head(NEW))
    assert not torch.allclose(learned(0.3).head(NEW)[:, :3], primal.head(NEW)[:, :3])


def test_no_penalty_is_refused() -> None:
    with pytest.raises(ValueError, match="penalty"):
        KernelRidge.empty(6, 4, 0.0, 0.3)


def test_another_order_of_members_leaves_their_level_and_the_others() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 5.0, 0.5]])
    members = torch.tensor([True, False, False, True])
    found = reranked(scores, torch.tensor([[0.1, 0.4], [7.0, -7.0]]), members)
    expected = [[2.7, 1.0, 2.0, 3.0], [0.5, 1.0, 5.0, -13.5]]
    torch.testing.assert_close(found, torch.tensor(expected))
