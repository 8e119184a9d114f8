"""A Gaussian head stacked on other scores: sums over a stream, leave-one-out choices, scores."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cl_clipfit.heads import stacking
from cl_clipfit.heads.fusion import POWERS
from cl_clipfit.heads.linear import lda_head
from cl_clipfit.heads.projection import random_features, random_projection
from cl_clipfit.heads.stacking import CANDIDATES, NEAR, SHRINKAGES, Choice, StackedHead
from cl_clipfit.heads.statistics import Statistics

CLASSES, FEATURES, TOKENS, WIDTH = 6, 8, 5, 30


def images(number: int = 60, noise: float = 0.8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return rows of unit blocks around class centres, and labels: several of every class."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % CLASSES
    centres = torch.randn(CLASSES, FEATURES + TOKENS, generator=torch.Generator().manual_seed(9))
    rows = centres[labels] + noise * torch.randn(number, FEATURES + TOKENS, generator=draw)
    return torch.cat([F.normalize(b, dim=1) for b in rows.split([FEATURES, TOKENS], 1)], 1), labels


def head() -> StackedHead:
    return StackedHead(FEATURES, WIDTH, seed=4)


def other(rows: Tensor, seed: int = 1) -> Tensor:
    """Return scores of another classifier: unrelated to the labels."""
    draw = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(len(rows), CLASSES, generator=draw)


def add(stack: StackedHead, rows: Tensor, labels: Tensor, scores: Tensor, parts: int = 1) -> None:
    """Let a head learn a task, in one part or several."""
    stack.add(labels, zip(rows.chunk(parts), scores.chunk(parts), strict=True), CLASSES)


def tasks(labels: Tensor) -> list[Tensor]:
    """Return the images of three tasks of two classes."""
    return [((labels == first) | (labels == first + 1)).nonzero().flatten() for first in (0, 2, 4)]


def test_losses_are_those_of_brute_force() -> None:
    rows, labels = images(18)
    scores, stack = other(rows), head()
    seen: list[int] = []
    expected, moments = torch.zeros_like(stack.losses), torch.zeros(3).double()
    projected = random_features(rows, random_projection(rows.shape[1], WIDTH, 4))
    spaces = rows[:, :FEATURES], projected
    for task in tasks(labels):
        add(stack, rows[task], labels[task], scores[task])
        seen += task.tolist()
        classes = sorted(set(labels[seen].tolist()))
        for image in task.tolist():
            rest = [i for i in seen if i != image]
            heads = {}
            for (space, x), (s, shrinkage) in product(enumerate(spaces), enumerate(SHRINKAGES)):
                fitted = lda_head(Statistics.of(x[rest], labels[rest], CLASSES), shrinkage)
                heads[space, s] = fitted(x[image : image + 1])[:, classes]
                log = float(fitted.distances(x[image : image + 1]).log())
                if (space, s) == NEAR:
                    moments += torch.tensor([1.0, log, log * log]).double()
            z_t = scores[image : image + 1, classes].double()
            target = torch.tensor([classes.index(int(labels[image]))])
            for c, parts in enumerate(CANDIDATES):
                z_h = torch.stack([weight * heads[space, s] for space, s, weight in parts]).sum(0)
                for (i, a), (j, b) in product(enumerate(POWERS), enumerate(POWERS)):
                    expected[c, i, j] += F.cross_entropy(a * z_t + b * z_h, target)
    torch.testing.assert_close(stack.losses, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(stack.membership.moments, moments, rtol=1e-6, atol=1e-6)
    chosen = stack.choice
    best, a, b = (int(i) for i in torch.unravel_index(expected.argmin(), expected.shape))
    assert chosen == Choice(CANDIDATES[best], (POWERS[a], POWERS[b]))


def test_a_useless_classifier_gets_no_say_and_a_perfect_one_all_of_it() -> None:
    rows, labels = images(noise=0.2)
    useless, perfect = other(rows), 10 * F.one_hot(labels, CLASSES).float()
    stack = head()
    for task in tasks(labels):
        add(stack, rows[task], labels[task], useless[task])
    first, second = stack.choice.powers
    assert first < second
    assert (stack(useless, rows).argmax(1) == labels).float().mean() > 0.95
    rows, labels = images(noise=50.0)  # features that say nothing
    stack = head()
    add(stack, rows, labels, perfect)
    assert stack.choice.powers[1] == min(POWERS)
    assert (stack(perfect, rows).argmax(1) == labels).all()


def learned(rows: Tensor, labels: Tensor, scores: Tensor) -> StackedHead:
    """Return a head that has learned the first two tasks."""
    stack = head()
    for task in tasks(labels)[:2]:
        add(stack, rows[task], labels[task], scores[task])
    return stack


def test_scores_are_probabilities_and_both_classifiers_share_out_those_of_classes_seen() -> None:
    rows, labels = images()
    scores = other(rows)
    assert torch.equal(head()(scores, rows), scores)
    stack = learned(rows, labels, scores)
    after = stack(scores, rows)
    torch.testing.assert_close(after.exp().sum(1), torch.ones(len(rows)))
    torch.testing.assert_close(after[:, 4:].log_softmax(1), scores[:, 4:].log_softmax(1))
    a, b = stack.choice.powers
    gaussian = torch.zeros(len(rows), CLASSES, dtype=torch.float64)
    for space, s, weight in stack.choice.parts:
        fitted = lda_head(stack.statistics[space], SHRINKAGES[s])
        gaussian += weight * fitted(stack.embed(rows, space))
    gaussian = gaussian.float()
    expected = (a * scores + b * gaussian)[:, :4].log_softmax(1)
    torch.testing.assert_close(after[:, :4].log_softmax(1), expected, rtol=1e-4, atol=1e-4)


def test_other_names_count_as_classes_not_seen() -> None:
    rows, labels = images()
    scores = other(rows)
    stack = learned(rows, labels, scores)
    names = other(rows, seed=5)
    joint = stack(torch.cat([scores[:, :4], names], 1), rows)
    swapped = stack(torch.cat([scores[:, :4], names.flip(1)], 1), rows)
    torch.testing.assert_close(joint[:, :4], swapped[:, :4])
    torch.testing.assert_close(joint[:, 4:], swapped[:, 4:].flip(1))


def test_far_from_every_class_seen_the_scores_of_another_domain_decide_among_these() -> None:
    rows, labels = images(240, noise=0.3)
    stack = learned(rows, labels, other(rows))
    new, scores = images(120, noise=0.3, seed=7)[0], other(rows[:120])
    elsewhere = other(rows[:120], seed=5)
    for images_, weight in ((new, None), (new + 30, 0.0), (rows, None)):
        n = min(len(images_), 120)
        images_, given = images_[:n], scores[:n]
        plain, mixed = stack(given, images_), stack(given, images_, elsewhere[:n])
        torch.testing.assert_close(mixed.exp().sum(1), torch.ones(n))
        torch.testing.assert_close(mixed[:, 4:], plain[:, 4:])  # of others nothing changes
        far = stack._head(*NEAR).distances(stack.embed(images_, NEAR[0]))
        odds = stack.membership.domain_odds(far, stack.choice.powers[0])
        near = odds.sigmoid()[:, None].float() if weight is None else torch.full((n, 1), weight)
        expected = near * plain[:, :4].softmax(1) + (1 - near) * elsewhere[:n, :4].softmax(1)
        torch.testing.assert_close(mixed[:, :4].softmax(1), expected, rtol=1e-3, atol=1e-4)


def test_classes_that_follow_the_stream_are_not_seen_in_any_domain() -> None:
    rows, labels = images()
    scores = other(rows)
    stack = learned(rows, labels, scores)
    elsewhere = other(rows, seed=5)
    before = stack(scores, rows, elsewhere)
    more = torch.full((len(rows), 2), -50.0)
    after = stack(torch.cat([scores, more], 1), rows, torch.cat([elsewhere, more + 99], 1))
    torch.testing.assert_close(after[:, :4].log_softmax(1), before[:, :4].log_softmax(1))


def test_what_is_far_from_every_class_seen_is_another() -> None:
    rows, labels = images(240, noise=0.3)
    stack = head()
    text = torch.zeros(len(rows), CLASSES)  # does not tell
    for task in tasks(labels)[:2]:
        add(stack, rows[task], labels[task], text[task])
    new, new_labels = images(120, noise=0.3, seed=7)
    probability = stack(torch.zeros(len(new), CLASSES), new)[:, :4].exp().sum(1)
    assert (probability[new_labels < 4] > 0.5).float().mean() > 0.9
    assert (probability[new_labels >= 4] > 0.5).float().mean() < 0.1


def test_the_state_restores_every_score_and_nothing_else_does() -> None:
    rows, labels = images()
    scores, stack, again = other(rows), head(), head()
    add(stack, rows, labels, scores)
    again.load_state_dict(stack.state_dict())
    assert torch.equal(again(scores, rows), stack(scores, rows))
    add(again, rows, labels, scores)
    add(stack, rows, labels, scores)
    assert torch.equal(again.losses, stack.losses)
    state = stack.state_dict()
    half = {name: t for name, t in state.items() if not name.startswith("random")}
    for wrong in (half, {**state, "losses": state["losses"][:1]}):
        with pytest.raises(ValueError, match="stacked head"):
            again.load_state_dict(wrong)


@pytest.mark.parametrize("count", [1, CLASSES], ids=["one class", "one image per class"])
def test_with_nothing_to_choose_from_both_count(count: int) -> None:
    rows, labels = images(CLASSES)
    stack = head()
    add(stack, rows[:count], labels[:count], other(rows)[:count])
    assert stack.choice.powers == (1.0, 1.0)
    assert stack(other(rows), rows).isfinite().all()


@pytest.mark.parametrize(("bound", "most"), [("MOST_SCORES", 20 * CLASSES), ("MOST_IMAGES", 20)])
def test_losses_of_very_many_images_are_those_of_a_sample(
    bound: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, labels = images()
    monkeypatch.setattr(stacking, bound, most)
    scores, stack, again = torch.zeros(len(rows), CLASSES), head(), head()
    add(stack, rows, labels, scores)
    add(again, rows, labels, scores)
    assert torch.equal(stack.losses, again.losses)
    assert stack.membership.moments[0] == 20
    assert stack.statistics[0].number == len(rows)
    # With equal scores the loss at the smallest power of the head is close to ln K per image.
    assert float(stack.losses[len(SHRINKAGES) - 1, 0, 0]) < 20 * math.log(CLASSES)


def test_a_task_in_parts_is_that_task() -> None:
    rows, labels = images()
    scores, whole, parts = other(rows), head(), head()
    for task in tasks(labels):
        add(whole, rows[task], labels[task], scores[task])
        by_class = task[labels[task].argsort()]  # each part has a single class
        add(parts, rows[by_class], labels[by_class], scores[by_class], parts=2)
    state = whole.state_dict()
    for name, tensor in parts.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-6, atol=1e-6)
