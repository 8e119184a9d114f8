"""The joint label space against answers worked out by hand, and a plain argmax."""

import pytest
import torch

from cl_clipfit.metrics.joint import JointSpace
from cl_clipfit.metrics.tables import NotANumberError

SPACE = JointSpace(["cat", "dog", "owl"], [0, 1, 3], {"pets": ["Dog ", "cow"], "one": ["cow"]})
# Columns: cat, dog, owl; Dog, cow; cow.
SCORES = torch.tensor([
    [9.0, 0.0, 8.0, 7.0, 1.0, 2.0],
    [0.0, 9.0, 1.0, 8.0, 7.0, 2.0],
    [1.0, 0.0, 9.0, 2.0, 3.0, 8.0],
    [2.0, 3.0, 1.0, 0.0, 4.0, 4.0],
])  # fmt: skip


@pytest.mark.parametrize(
    ("probe", "label", "right"),
    [
        # answers before any task: Dog, Dog, cow of one, cow of pets
        (None, 0, [[False, True, True], [False] * 3, [False] * 3, [False] * 3]),
        (None, 1, [[True, False, False], [True] * 3, [False] * 3, [False] * 3]),
        (None, 2, [[False] * 3, [False] * 3, [False, False, True], [False] * 3]),
        ("pets", 0, [[True, False, False], [True] * 3, [False] * 3, [False] * 3]),
        ("pets", 1, [[False] * 3, [False] * 3, [True, True, False], [True] * 3]),
        ("one", 0, [[False] * 3, [False] * 3, [True, True, False], [True] * 3]),
    ],
)
def test_answers_of_the_same_name_are_right_for_either(
    probe: str | None, label: int, right: list[list[bool]]
) -> None:
    labels = torch.full((4,), label)
    assert SPACE.right(SCORES, labels, [0, 1, 2], probe).tolist() == right
    assert SPACE.right(SCORES, labels, [1], probe).tolist() == [[row[1]] for row in right]


def test_within_a_data_set_the_label_counts() -> None:
    space = JointSpace(["crane", "crane"], [0, 2], {"p": ["heron", "heron"]})
    scores = torch.tensor([[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 2.0, 1.0]])
    assert space.right(scores, torch.tensor([0, 1]), [1]).tolist() == [[False], [False]]
    assert space.right(scores, torch.tensor([1, 1]), [1], "p").tolist() == [[False], [False]]
    assert space.right(scores, torch.tensor([1, 0]), [1], "p").tolist() == [[False], [True]]


@pytest.mark.parametrize("seed", range(5))
def test_the_best_is_that_of_a_plain_argmax(seed: int) -> None:
    """Small integers: many ties, of which the first column wins; some columns are excluded."""
    draws = torch.Generator().manual_seed(seed)
    seen = [0, 2, 2, 5, 6]
    space = JointSpace([f"c{n}" for n in range(6)], seen, {"p": ["x", "y"], "q": ["z"]})
    scores = torch.randint(0, 4, (200, 9), generator=draws).float()
    scores[:, 4] = -torch.inf
    labels = torch.randint(0, 6, (200,), generator=draws)
    right = space.right(scores, labels, range(5))
    for task, count in enumerate(seen):
        columns = torch.tensor([*range(count), 6, 7, 8])
        best = columns[scores[:, columns].argmax(1)]
        assert torch.equal(right[:, task], best == labels)


def test_a_score_that_is_not_a_number_is_an_error() -> None:
    scores = SCORES.clone()
    scores[2, 5] = torch.nan
    with pytest.raises(NotANumberError):
        SPACE.right(scores, torch.zeros(4, dtype=torch.long), [0])
