"""Closed-form heads against NumPy, scikit-learn and brute force."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from torch import Tensor

from cl_clipfit.heads import leave_one_out
from cl_clipfit.heads.fusion import POWERS, add_namesakes, best_powers, fused, loss_tables
from cl_clipfit.heads.linear import (
    LinearHead,
    class_mean_head,
    gda_head,
    lda_head,
    ridge_head,
    shrunk_covariance,
)
from cl_clipfit.heads.projection import random_features, random_projection
from cl_clipfit.heads.recursive import RecursiveRidge
from cl_clipfit.heads.statistics import Statistics

CLASSES, DIM = 5, 7


def data(number: int = 40, seed: int = 0, dim: int = DIM) -> tuple[Tensor, Tensor]:
    """Return features (N, D) around class centres, and labels with at least two of each class."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.cat(
        [torch.arange(CLASSES).repeat(2), torch.randint(CLASSES, (number,), generator=draw)]
    )
    labels = labels[torch.randperm(len(labels), generator=draw)]
    centres = torch.randn(CLASSES, dim, generator=draw, dtype=torch.float64)
    noise = torch.randn(len(labels), dim, generator=draw, dtype=torch.float64)
    return centres[labels] + 0.7 * noise, labels


# ---- statistics ----------------------------------------------------------------------------------


def test_statistics_of_parts_add_up_to_those_of_the_whole() -> None:
    x, y = data()
    order = y.argsort()  # tasks: classes arrive one after another
    parts = [Statistics.of(x[i], y[i]) for i in order.split(9)]
    for sequence in (parts, parts[::-1]):
        total = sum(sequence, Statistics.empty(DIM))
        for name, value in Statistics.of(x, y).state_dict().items():
            torch.testing.assert_close(total.state_dict()[name], value, rtol=1e-12, atol=1e-12)


def test_statistics_are_those_of_numpy() -> None:
    x, y = data()
    statistics = Statistics.of(x.float(), y, classes=CLASSES + 2)
    xn, yn = x.float().double().numpy(), y.numpy()
    np.testing.assert_allclose(statistics.gram, np.einsum("ni,nj->ij", xn, xn), rtol=1e-12)
    means = np.stack([xn[yn == c].mean(0) for c in range(CLASSES)])
    np.testing.assert_allclose(statistics.means()[:CLASSES], means, rtol=1e-12)
    scatter = sum((xn[yn == c] - means[c]).T @ (xn[yn == c] - means[c]) for c in range(CLASSES))
    np.testing.assert_allclose(statistics.scatter(), scatter, rtol=1e-9, atol=1e-12)
    assert statistics.seen.tolist() == [True] * CLASSES + [False] * 2
    assert (statistics.number, statistics.dim) == (len(y), DIM)
    assert statistics.bytes == 8 * (DIM * DIM + (CLASSES + 2) * (DIM + 1))
    restored = Statistics.from_state(statistics.state_dict())
    assert all(torch.equal(restored.state_dict()[k], v) for k, v in statistics.state_dict().items())


def test_statistics_of_a_few_classes_are_taken_in_bit_for_bit() -> None:
    x, y = data()
    expected, found = Statistics.empty(DIM, 2), Statistics.empty(DIM, 2)
    for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(3)).split(7):
        expected = expected + Statistics.of(x[rows], y[rows])
        present, places = y[rows].unique(return_inverse=True)
        found = found.take_in(Statistics.of(x[rows], places), present)
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    one = Statistics.of(x[:3], torch.zeros(3, dtype=torch.int64))
    assert found.take_in(one, torch.tensor([1])) is found  # no class is new
    assert len(found.take_in(one, torch.tensor([0]), CLASSES + 4).counts) == CLASSES + 4
    assert len(found.take_in(one, torch.tensor([CLASSES + 6])).counts) == CLASSES + 7
    for wrong in ([-1], [1, 2], []):
        with pytest.raises(ValueError, match="1 classes have labels"):
            found.take_in(one, torch.tensor(wrong, dtype=torch.int64))


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 2), torch.tensor([0, -1])),
        (torch.tensor([[math.nan, 0.0]]), torch.tensor([0])),
        (torch.tensor([[math.inf, 0.0]]), torch.tensor([0])),
    ],
)
def test_what_is_not_labelled_features_is_refused(features: Tensor, labels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"features|labels"):
        Statistics.of(features, labels)


@pytest.mark.parametrize("name", ["gram", "sums", "counts"])
def test_other_tensors_are_not_restored(name: str) -> None:
    state = Statistics.of(*data()).state_dict()
    for wrong in (state[name][:-1], state[name].float()):
        with pytest.raises(ValueError, match="not the statistics"):
            Statistics.from_state({**state, name: wrong})


# ---- heads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shrinkage", [0.01, 0.3, 1.0])
def test_lda_is_that_of_scikit_learn(shrinkage: float) -> None:
    x, y = data()
    statistics = Statistics.of(x, y)
    reference = LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage=shrinkage, priors=np.full(CLASSES, 1 / CLASSES)
    )
    # With these priors, scikit-learn weights the covariance of every class alike; ours weights it
    # by its images, so that the classes of this comparison need equally many.
    equal = torch.cat([(y == c).nonzero()[:, 0][:4] for c in range(CLASSES)])
    x, y, statistics = x[equal], y[equal], Statistics.of(x[equal], y[equal])
    reference.fit(x.numpy(), y.numpy())
    free = (len(y) - CLASSES) / len(y)  # scikit-learn divides the scatter by N
    head = lda_head(statistics, shrinkage)
    np.testing.assert_allclose(head.weight, reference.coef_ * free, rtol=1e-6)
    bias = (reference.intercept_ + math.log(CLASSES)) * free
    np.testing.assert_allclose(head.bias, bias, rtol=1e-6)


def test_ridge_over_tasks_is_that_of_all_data_at_once() -> None:
    x, y = data()
    targets = torch.nn.functional.one_hot(y).double().numpy()
    reference = Ridge(alpha=0.7, fit_intercept=False, solver="cholesky").fit(x.numpy(), targets)
    order = y.argsort()
    total = sum((Statistics.of(x[i], y[i]) for i in order.split(9)), Statistics.empty(DIM))
    np.testing.assert_allclose(ridge_head(total, 0.7).weight, reference.coef_, rtol=1e-6)


def test_ridge_is_the_recursion_of_acil() -> None:
    x, y = data()
    solution = RecursiveRidge.empty(DIM, CLASSES + 1, 0.7)
    for part in y.argsort().split(9):
        solution = solution.updated(x[part], y[part])
    expected = ridge_head(Statistics.of(x, y, CLASSES + 1), 0.7)
    torch.testing.assert_close(solution.head.weight, expected.weight, rtol=1e-9, atol=1e-9)
    assert torch.equal(solution.head.bias, expected.bias)
    with pytest.raises(ValueError, match="above 0"):
        RecursiveRidge.empty(DIM, CLASSES, 0.0)


def test_class_means_and_the_gaussian_head_by_hand() -> None:
    x, y = data()
    x = torch.nn.functional.normalize(x, dim=1)
    statistics = Statistics.of(x, y)
    means = torch.stack([x[y == c].mean(0) for c in range(CLASSES)])
    cosine = torch.nn.functional.cosine_similarity(x[:, None], means[None], dim=2)
    torch.testing.assert_close(class_mean_head(statistics)(x), cosine)
    centred = (x - means[y]).numpy()
    covariance = np.cov(centred.T)  # of the published code
    precision = DIM * np.linalg.pinv((len(x) - 1) * covariance + np.trace(covariance) * np.eye(DIM))
    weight = means.numpy() @ precision
    head = gda_head(statistics)
    np.testing.assert_allclose(head.weight, weight, rtol=1e-9)
    np.testing.assert_allclose(head.bias, -(weight * means.numpy()).sum(1) / 2, rtol=1e-9)


@pytest.mark.parametrize(
    "fit", [class_mean_head, lda_head, partial(ridge_head, penalty=0.7), gda_head]
)
def test_a_class_without_features_is_never_chosen(fit: Callable[[Statistics], LinearHead]) -> None:
    x, y = data()
    scores = fit(Statistics.of(x, 2 * y))(x)
    assert (scores[:, 1::2] == -math.inf).all() and scores[:, ::2].isfinite().all()
    assert set(scores.argmax(1).tolist()) <= set((2 * y).tolist())


@pytest.mark.parametrize("x", [torch.eye(4).double(), torch.ones(4, 3).double()])
def test_without_scatter_the_covariance_is_the_identity(x: Tensor) -> None:
    labels = torch.arange(4) if len(x.unique()) > 1 else torch.zeros(4, dtype=torch.int64)
    statistics = Statistics.of(x, labels)
    assert torch.equal(shrunk_covariance(statistics, 0.3), torch.eye(x.shape[1]).double())
    assert lda_head(statistics)(x).isfinite().all()


# ---- leave one out -------------------------------------------------------------------------------


def without_each(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Statistics]]:
    """Yield every feature (1, D), and the statistics of all others."""
    for row in range(len(y)):
        rest = torch.arange(len(y)) != row
        yield x[row : row + 1], Statistics.of(x[rest], y[rest], CLASSES)


@pytest.mark.parametrize(("number", "dim"), [(40, DIM), (0, DIM), (3, 20)])
@pytest.mark.parametrize(
    ("fit", "scores"),
    [
        (class_mean_head, leave_one_out.class_mean_scores),
        (partial(ridge_head, penalty=0.7), partial(leave_one_out.ridge_scores, penalty=0.7)),
    ],
    ids=["class means", "ridge"],
)
def test_scores_left_out_are_those_of_brute_force(
    fit: Callable[[Statistics], LinearHead], scores: Callable[..., Tensor], number: int, dim: int
) -> None:
    x, y = data(number, seed=number + dim, dim=dim)
    closed = scores(Statistics.of(x, y), x, y)
    for i, (one, others) in enumerate(without_each(x, y)):
        torch.testing.assert_close(closed[i], fit(others)(one)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("number", "dim"), [(40, DIM), (3, 40)])
def test_errors_of_ridge_regression_left_out_are_those_of_brute_force(
    number: int, dim: int
) -> None:
    x, y = data(number, dim=dim)
    penalties = (0.01, 1.0, 30.0)
    losses = leave_one_out.ridge_losses(Statistics.of(x, y, CLASSES + 1), x, y, penalties)
    targets = F.one_hot(y, CLASSES)
    for loss, penalty in zip(losses, penalties, strict=True):
        scores = [ridge_head(others, penalty)(one) for one, others in without_each(x, y)]
        expected = (torch.cat(scores) - targets).square().sum()
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("number", "dim"), [(40, DIM), (0, DIM), (3, 20)])
def test_scores_and_distances_left_out_are_those_of_brute_force(number: int, dim: int) -> None:
    x, y = data(number, seed=number + dim, dim=dim)
    shrinkages = (0.3, 0.9)
    results = leave_one_out.lda_scores_and_distances(Statistics.of(x, y), x, y, shrinkages)
    for (scores, distances), shrinkage in zip(results, shrinkages, strict=True):
        for i, (one, others) in enumerate(without_each(x, y)):
            head = lda_head(others, shrinkage)
            torch.testing.assert_close(scores[i], head(one)[0], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(distances[i], head.distances(one)[0], rtol=1e-9, atol=0)


def test_distances_are_mahalanobis() -> None:
    x, y = data()
    statistics = Statistics.of(x, y)
    inverse = torch.linalg.inv(shrunk_covariance(statistics, 0.3))
    v = x[:, None] - statistics.means()
    expected = torch.einsum("nkd,de,nke->nk", v, inverse, v).amin(1)
    torch.testing.assert_close(lda_head(statistics).distances(x), expected)


def test_a_lone_feature_of_a_class_cannot_be_left_out() -> None:
    statistics = Statistics.of(torch.eye(4), torch.tensor([0, 0, 1, 2]))
    labels = torch.tensor([0, 1, 2])
    assert leave_one_out.several(statistics.counts, labels).tolist() == [True, False, False]


# ---- projection and fusion -----------------------------------------------------------------------


def test_random_features_depend_on_the_seed_alone() -> None:
    first, again, other = (random_projection(4, 6, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    x = torch.randn(3, 4)
    by_hand = np.maximum(x.numpy() @ first.numpy(), 0) / 2
    np.testing.assert_allclose(random_features(x, first), by_hand, rtol=1e-5)


def test_powers_have_the_smallest_loss_summed_over_tasks() -> None:
    draw = torch.Generator().manual_seed(0)
    tasks = [
        (torch.randn(20, 4, generator=draw), torch.randn(20, 4, generator=draw),
         torch.randint(4, (20,), generator=draw))
        for _ in range(3)
    ]  # fmt: skip
    for one, two, y in tasks:  # the second is the better one
        two[torch.arange(20), y] += 2
        one[torch.arange(20), y] += 0.3
    table = sum((loss_tables(one, [two], y)[0] for one, two, y in tasks), torch.zeros(()))
    both = [torch.cat(parts) for parts in zip(*tasks, strict=True)]
    at_once = loss_tables(both[0], [both[1]], both[2])[0]
    torch.testing.assert_close(table, at_once, rtol=1e-10, atol=1e-9)

    def loss(a: float, b: float) -> float:
        scores = (a * both[0] + b * both[1]).double()
        chosen = scores[torch.arange(len(scores)), both[2]]
        return float((scores.exp().sum(1).log() - chosen).sum())

    brute = min((loss(a, b), a, b) for a in POWERS for b in POWERS)
    assert best_powers(table) == brute[1:] and brute[2] > brute[1]


@pytest.mark.parametrize("size", [1.0, 100.0, 3000.0], ids=["small", "logits", "huge"])
def test_losses_are_cross_entropies_also_where_exponentials_underflow(size: float) -> None:
    draw = torch.Generator().manual_seed(0)
    one, *others = (size * torch.randn(3, 30, 7, generator=draw)).double()
    labels = torch.randint(7, (30,), generator=draw)
    found = loss_tables(one, others, labels)
    for table, two in zip(found, others, strict=True):
        for (i, a), (j, b) in product(enumerate(POWERS), enumerate(POWERS)):
            wanted = F.cross_entropy(a * one + b * two, labels, reduction="sum")
            torch.testing.assert_close(table[i, j], wanted, rtol=1e-12, atol=1e-9)


def test_what_one_classifier_excludes_stays_excluded() -> None:
    one, two = torch.tensor([[1.0, -math.inf, 2.0]]), torch.tensor([[0.5, 3.0, 1.0]])
    assert fused(one, two, (2.0, 1.0)).tolist() == [[2.5, -math.inf, 5.0]]
    assert fused(one, two, (0.0, 1.0)).tolist() == [[0.5, -math.inf, 1.0]]
    with pytest.raises(ValueError, match="finite"):
        best_powers(torch.full((2, 2), math.inf), [1.0, 2.0])


def test_namesakes_have_the_sum_of_both_and_nothing_else_changes() -> None:
    scores = torch.randn(30, 9, generator=torch.Generator().manual_seed(4)).mul(20).log_softmax(1)
    same = torch.zeros(5, 4, dtype=torch.bool)
    same[1, 0] = same[1, 3] = same[2, 2] = same[4, 2] = True  # one of two names, one of two classes
    expected, classes, names = scores.clone(), scores[:, :5], scores[:, 5:]
    for label, name in same.nonzero().tolist():
        expected[:, label] = torch.logaddexp(expected[:, label], names[:, name])
        expected[:, 5 + name] = torch.logaddexp(expected[:, 5 + name], classes[:, label])
    torch.testing.assert_close(add_namesakes(scores, same), expected)
    assert torch.equal(add_namesakes(scores, torch.zeros_like(same)), scores)
    far = torch.tensor([[-200.0, 0.0, -300.0]])  # too small to count
    assert torch.equal(add_namesakes(far, torch.tensor([[True], [False]])), far)
