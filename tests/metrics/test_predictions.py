"""The answers that are kept of each image."""

import numpy as np
import torch

from cl_clipfit.metrics.predictions import NONE, predictions
from cl_clipfit.metrics.tables import accuracy


def test_the_best_classes_of_a_label_space_are_kept_with_their_probabilities() -> None:
    scores = torch.randn(50, 9, generator=torch.Generator().manual_seed(0)) * 3
    labels, tasks = torch.arange(50) % 9, torch.arange(50) // 25
    space = [4, 0, 7, 2, 8, 1, 3]
    kept = predictions(scores, labels, tasks, space)
    probabilities = scores[:, space].double().softmax(1).numpy()
    for row, top, values in zip(probabilities, kept.top, kept.scores, strict=True):
        order = np.argsort(-row)[:5]
        assert top.tolist() == [space[i] for i in order]
        np.testing.assert_allclose(values, row[order], rtol=1e-3, atol=1e-7)
    assert kept.labels.tolist() == labels.tolist()
    assert kept.tasks.tolist() == tasks.tolist()
    assert kept.scores.dtype == np.float16
    assert kept.right.mean() * 100 == accuracy(scores, labels, space)


def test_of_equal_scores_the_first_is_best_as_in_the_tables() -> None:
    scores = torch.randint(0, 2, (200, 40), generator=torch.Generator().manual_seed(1)).float()
    labels = torch.arange(200) % 40
    for space in (None, [*range(39, -1, -1)], [3, 1]):
        kept = predictions(scores, labels, torch.zeros(200), space)
        assert 100 * int(kept.right.sum()) / 200 == accuracy(scores, labels, space)
        assert all(len({*row} - {NONE}) == min(5, len(space or labels)) for row in kept.top)


def test_places_without_a_class_are_marked() -> None:
    kept = predictions(torch.tensor([[1.0, 5.0]]), torch.tensor([0]), torch.tensor([0]), [1])
    assert kept.top.tolist() == [[1, NONE, NONE, NONE, NONE]]
    assert kept.scores.tolist() == [[1, 0, 0, 0, 0]]
    assert kept.accuracy(0) == 0
    assert kept.accuracy(1) is None
    assert kept.of(kept.right).top.shape == (0, 5)
