"""Canonical correlations from sums, against scikit-learn and an SVD in NumPy."""

import numpy as np
import torch
from sklearn.cross_decomposition import CCA
from torch import Tensor

from cl_clipfit.heads.canonical import canonical_head
from cl_clipfit.heads.projection import fourier_features, random_projection
from cl_clipfit.heads.statistics import Statistics

DRAW = torch.Generator().manual_seed(0)
CLASSES, DIM, WIDTH = 7, 5, 4
TEXT = torch.randn(CLASSES + 1, WIDTH, generator=DRAW, dtype=torch.float64)
LABELS = torch.randint(CLASSES, (60,), generator=DRAW)
MAP = torch.randn(WIDTH, DIM, generator=DRAW, dtype=torch.float64)
NOISE = torch.randn(60, DIM, generator=DRAW, dtype=torch.float64)
X = TEXT[LABELS] @ MAP + 1.5 * NOISE + 3


def statistics() -> Statistics:
    """Return the sums over the features, and a class without any."""
    return Statistics.of(X, LABELS, CLASSES + 1)


def inverse_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray(vectors / np.sqrt(values) @ vectors.T)


def by_numpy(x: Tensor, y: Tensor, penalty: float, kept: int) -> tuple[np.ndarray, ...]:
    """Return the correlations, and the weighted directions of both sides, of pairs of rows."""
    both = np.cov(x.numpy().T, y.numpy().T)
    n = x.shape[1]
    first = inverse_root(both[:n, :n] + penalty * np.eye(n))
    second = inverse_root(both[n:, n:] + penalty * np.eye(len(both) - n))
    u, s, vt = np.linalg.svd(first @ both[:n, n:] @ second)
    return s, first @ u[:, :kept] * s[:kept], second @ vt[:kept].T * s[:kept]


def test_correlations_are_those_of_scikit_learn() -> None:
    reference = CCA(n_components=WIDTH, scale=False, max_iter=10_000, tol=1e-12)
    left, right = reference.fit_transform(X.numpy(), TEXT[LABELS].numpy())
    expected = [np.corrcoef(left[:, i], right[:, i])[0, 1] for i in range(WIDTH)]
    head = canonical_head(statistics(), TEXT, 1e-12)
    np.testing.assert_allclose(head.correlations[:WIDTH], expected, rtol=1e-5)
    assert head.correlations[0] > head.correlations[WIDTH - 1] + 0.1


def test_scores_are_cosines_in_the_subspace_of_a_singular_value_decomposition() -> None:
    for penalty, energy in ((0.1, 1.0), (2.0, 0.9)):
        head = canonical_head(statistics(), TEXT, penalty, energy)
        full, *_ = by_numpy(X, TEXT[LABELS], penalty, WIDTH)
        share = np.cumsum(full**2) / np.sum(full**2)
        kept = WIDTH if energy == 1 else int(np.argmax(share >= energy)) + 1
        _, of_image, of_text = by_numpy(X, TEXT[LABELS], penalty, kept)
        assert energy == 1 or len(head.correlations) == kept < WIDTH
        left = (X - X.mean(0)).numpy() @ of_image
        right = (TEXT - TEXT[LABELS].mean(0)).numpy()[:CLASSES] @ of_text
        left, right = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (left, right))
        scores = head(X)
        np.testing.assert_allclose(scores[:, :CLASSES], left @ right.T, rtol=1e-7, atol=1e-9)
        assert (scores[:, CLASSES] == -torch.inf).all()


def test_the_text_of_a_class_without_features_does_not_matter() -> None:
    other = TEXT.clone()
    other[-1] = 100
    found = [canonical_head(statistics(), text, 0.1)(X)[:, :CLASSES] for text in (TEXT, other)]
    torch.testing.assert_close(*found)


def test_two_classes_keep_a_direction_and_one_class_is_no_error() -> None:
    for classes in (1, 2):
        some = LABELS.lt(classes)
        sums = Statistics.of(X[some], LABELS[some], CLASSES + 1)
        head = canonical_head(sums, TEXT, 0.1, 0.999)
        assert len(head.correlations) == 1
        assert head(X[some])[:, :classes].isfinite().all()
    assert (head(X[some]).argmax(1) == LABELS[some]).float().mean() > 0.8


def test_fourier_features_approximate_a_gaussian_kernel() -> None:
    x = torch.randn(6, 3, generator=DRAW)
    features = fourier_features(x, random_projection(3, 40_000, 1), 1.5, 1)
    expected = (-torch.cdist(x, x).square() / (2 * 1.5**2)).exp()
    torch.testing.assert_close(features @ features.T, expected, rtol=0, atol=0.02)
    other = fourier_features(x, random_projection(3, 40_000, 1), 1.5, 2)
    assert not torch.equal(features, other)
