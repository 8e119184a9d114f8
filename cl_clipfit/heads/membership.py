"""Whether an image is of a class seen: odds from text scores and distance, fitted on the stream.

No image of another data set is needed. The images of a new task, before they are learned, are
images of none of the classes seen so far; left out of a head that has learned them, they are images
of classes seen. Their losses choose how much a distance says, and only sums are kept.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_clipfit.heads.fusion import POWERS

WIDTHS = tuple(5 * 2.0 ** (exponent / 2) for exponent in range(-6, 7))
DEFAULT = WIDTHS.index(5.0)
OTHER, SEEN = 0, 1
FAMILIAR = 4.0  # images of a class seen from its domain, for one from another
TINY = 1e-12


def text_odds(scores: Tensor, seen: Tensor, powers: Sequence[float] = POWERS) -> Tensor:
    """Return log-odds (P, N) of the classes seen by scores (N, C), each group as likely before.

    Args:
        scores: of all names.
        seen: bool (C,), which of them are classes seen; some are, and some are not.
        powers: P factors of the scores.
    """
    inside, outside = scores[:, seen], scores[:, ~seen]
    return torch.stack([log_mean_exp(a * inside) - log_mean_exp(a * outside) for a in powers])


def log_mean_exp(scores: Tensor) -> Tensor:
    """Return log(mean(exp(scores))) over the columns: (N, C) -> (N,)."""
    return scores.logsumexp(1) - math.log(scores.shape[1])


class Membership:
    """Log-odds that an image is of a class seen.

    The logarithm of the distance to the nearest class mean is normal for images of classes seen,
    with the moments of the leave-one-out ones; those below the mean count as the mean. For other
    images it is spread evenly over as many standard deviations as `WIDTHS` says. The width is that
    with the smallest loss (cross-entropy of seen against other, both groups counting the same).

    Attributes:
        moments: fp64 (3,), count, sum and sum of squares of the logarithm of a distance.
        losses: fp64 (2, P, W), sums over images of others and of classes seen, by power of the
            scores and width.
        numbers: fp64 (2,), images of others and of classes seen in the losses.
    """

    def __init__(self) -> None:
        self.moments = torch.zeros(3, dtype=torch.float64)
        self.losses = torch.zeros(2, len(POWERS), len(WIDTHS), dtype=torch.float64)
        self.numbers = torch.zeros(2, dtype=torch.float64)

    def add_moments(self, distances: Tensor) -> None:
        """Add leave-one-out distances (N,) of images of classes seen."""
        log = distances.clamp(min=TINY).log()
        self.moments += torch.stack([torch.ones_like(log), log, log * log]).sum(1)

    def add_losses(self, group: int, text: Tensor, distances: Tensor) -> None:
        """Add the losses of images.

        Args:
            group: `OTHER` or `SEEN`, what the images are.
            text: fp64 (P, N); see `text_odds`.
            distances: (N,) by a head that has not learned them.
        """
        self.numbers[group] += text.shape[1]
        sign = 1 if group == OTHER else -1
        odds = text + self.nearness(distances)
        for i, width in enumerate(WIDTHS):
            self.losses[group, :, i] += F.softplus(sign * (odds + _offset(width))).sum(1)

    def width(self, power: float) -> float:
        """Return the width for a power of the scores (of `POWERS`)."""
        if not self.numbers.all():  # one task: nothing was ever new
            return WIDTHS[DEFAULT]
        means = self.losses[:, POWERS.index(power)] / self.numbers[:, None]
        return WIDTHS[int(means.sum(0).argmin())]

    def odds(self, text: Tensor, distances: Tensor, power: float) -> Tensor:
        """Return the log-odds (N,) from those of the text (N,) and the distances (N,)."""
        if not self.deviation:
            return text
        return text + self.nearness(distances).to(text) + _offset(self.width(power))

    def domain_odds(self, distances: Tensor, power: float) -> Tensor:
        """Return log-odds (N,) that an image of a class seen is of the domain it was seen in.

        As `odds` has them, without text, and with that domain `FAMILIAR` times as likely before.
        """
        if not self.deviation:
            return torch.full_like(distances, math.inf)
        return self.nearness(distances) + _offset(FAMILIAR * self.width(power))

    @property
    def deviation(self) -> float:
        """The standard deviation of the logarithm of a distance; 0 for too few images."""
        count, total, squares = self.moments.tolist()
        variance = squares / max(count, 1) - (total / max(count, 1)) ** 2
        return float(variance**0.5) if variance > TINY else 0.0

    def nearness(self, distances: Tensor) -> Tensor:
        """Return -1/2 z^2 of distances (N,) that are z > 0 standard deviations above the mean."""
        if not (deviation := self.deviation):
            return torch.zeros_like(distances)
        count, total, _ = self.moments.tolist()
        z = (distances.clamp(min=TINY).log() - total / count) / deviation
        return -z.clamp(min=0).square() / 2

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sums."""
        return {"moments": self.moments, "losses": self.losses, "numbers": self.numbers}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the sums.

        Raises:
            ValueError: they are not those of a membership.
        """
        mine = self.state_dict()
        if {n: t.shape for n, t in mine.items()} != {n: t.shape for n, t in state.items()}:
            raise ValueError("not the sums of a membership")
        self.moments, self.losses = state["moments"], state["losses"]
        self.numbers = state["numbers"]


def _offset(width: float) -> float:
    """Return the logarithm of the ratio of densities at the mean: 1 / sqrt(2 pi) and 1 / width."""
    return math.log(width / math.sqrt(2 * math.pi))
