"""Whether an image is of a class seen: odds, their losses, and what these choose."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cl_clipfit.heads.fusion import POWERS
from cl_clipfit.heads.membership import OTHER, SEEN, WIDTHS, Membership, text_odds


def distances(number: int, mean: float, seed: int) -> Tensor:
    """Return distances whose logarithm is normal around a mean, with deviation 0.5."""
    draw = torch.Generator().manual_seed(seed)
    return (mean + 0.5 * torch.randn(number, generator=draw, dtype=torch.float64)).exp()


def fitted(other_mean: float, text_of_others: float = 0.0) -> Membership:
    """Return a membership that has learned from images of both groups."""
    membership = Membership()
    membership.add_moments(distances(400, 1.0, 0))
    silent = torch.zeros(len(POWERS), 400, dtype=torch.float64)
    membership.add_losses(SEEN, silent, distances(400, 1.0, 0))
    membership.add_losses(OTHER, silent + text_of_others, distances(400, other_mean, 1))
    return membership


def test_text_odds_compare_the_means_of_both_groups() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.5, -1.0, 3.0]], dtype=torch.float64)
    seen = torch.tensor([True, True, False, False, False])
    inside = (math.exp(2.0) + math.exp(4.0)) / 2
    outside = (math.exp(1.0) + math.exp(-2.0) + math.exp(6.0)) / 3
    found = text_odds(scores, seen, [2.0])
    assert float(found) == pytest.approx(math.log(inside / outside))


def test_odds_are_a_ratio_of_densities() -> None:
    membership = Membership()
    far = torch.tensor([1.0, math.e**2, math.e**4], dtype=torch.float64)
    membership.add_moments(far)  # logarithms 0, 2, 4
    deviation = (8 / 3) ** 0.5
    text = torch.tensor([0.3, 0.3, 0.3], dtype=torch.float64)
    at_mean = 0.3 + math.log(5 / math.sqrt(2 * math.pi))
    expected = [at_mean, at_mean, at_mean - 0.5 * (2 / deviation) ** 2]
    assert membership.odds(text, far, 1.0).tolist() == pytest.approx(expected)


def test_losses_are_the_cross_entropy_of_seen_against_other() -> None:
    membership = fitted(other_mean=2.0)
    power, width = 3, 5
    odds = {
        SEEN: membership.nearness(distances(400, 1.0, 0)),
        OTHER: membership.nearness(distances(400, 2.0, 1)),
    }
    for group, values in odds.items():
        odds_all = values + math.log(WIDTHS[width] / math.sqrt(2 * math.pi))
        target = torch.full_like(values, float(group == SEEN))
        loss = F.binary_cross_entropy_with_logits(odds_all, target, reduction="sum")
        found = membership.losses[group, power, width]
        assert float(found) == pytest.approx(float(loss))
    assert membership.numbers.tolist() == [400, 400]


def test_the_stream_chooses_how_much_the_distance_says() -> None:
    apart, close = fitted(other_mean=6.0), fitted(other_mean=1.5)
    # Where others are far away, an image of a class seen is safe to call one.
    assert apart.width(1.0) > close.width(1.0)
    # Text that already rejects the others leaves less to the distance.
    assert fitted(1.5, text_of_others=-4.0).width(1.0) > close.width(1.0)


def test_with_one_group_or_too_few_images_nothing_is_chosen() -> None:
    membership, text = Membership(), torch.tensor([0.7])
    far = torch.tensor([2.0], dtype=torch.float64)
    assert membership.odds(text, far, 1.0).tolist() == text.tolist()
    seen = distances(50, 1.0, 0)
    membership.add_moments(seen)
    membership.add_losses(SEEN, torch.zeros(len(POWERS), 50, dtype=torch.float64), seen)
    assert membership.width(1.0) == 5.0


def test_the_state_restores_the_choice_and_nothing_else_does() -> None:
    membership, again = fitted(other_mean=6.0), Membership()
    again.load_state_dict(membership.state_dict())
    assert again.width(0.25) == membership.width(0.25)
    with pytest.raises(ValueError, match="membership"):
        again.load_state_dict({**membership.state_dict(), "numbers": torch.zeros(3)})


def test_a_class_seen_is_usually_in_the_domain_it_was_seen_in() -> None:
    membership, power = fitted(4.0), POWERS[0]
    typical = distances(4000, 1.0, 2)
    odds = membership.domain_odds(typical, power)
    expected = membership.odds(torch.zeros(4000, dtype=torch.float64), typical, power)
    torch.testing.assert_close(odds, expected + math.log(4))
    assert float(odds.sigmoid().mean()) > 0.8
    assert float(membership.domain_odds(distances(1, 6.0, 2), power).sigmoid()) < 1e-6
    assert Membership().domain_odds(typical, power).eq(math.inf).all()  # nothing was measured
