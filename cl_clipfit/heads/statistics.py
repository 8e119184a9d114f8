"""Sufficient statistics of labelled features: sums that add up exactly over tasks and processes."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Sums over N features (N, D) of K classes, in fp64: D^2 + K D numbers, and no image.

    Statistics of parts add up to those of the whole, in any order and over processes, up to
    rounding in fp64.

    Attributes:
        gram: (D, D), the sum of x x'.
        sums: (K, D), the sum of the features of each class.
        counts: int64 (K,), images of each class.

    Example:
        >>> first = Statistics.of(torch.eye(2), torch.tensor([0, 1]))
        >>> both = first + Statistics.of(torch.ones(1, 2), torch.tensor([2]))
        >>> both.counts.tolist(), both.gram.tolist()
        ([1, 1, 1], [[2.0, 1.0], [1.0, 2.0]])
    """

    gram: Tensor
    sums: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, dim: int, classes: int = 0) -> "Statistics":
        """Return the statistics of no feature."""
        double = torch.float64
        return cls(
            torch.zeros(dim, dim, dtype=double),
            torch.zeros(classes, dim, dtype=double),
            torch.zeros(classes, dtype=torch.int64),
        )

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int = 0) -> "Statistics":
        """Return the statistics of features (N, D) with labels (N,).

        Args:
            features: of any floating-point type; summed in fp64.
            labels: int64, from 0.
            classes: K is at least this; default: one more than the largest label.

        Raises:
            ValueError: shapes differ, a label is negative, or a feature is NaN or infinite.
        """
        if features.dim() != 2 or labels.shape != features.shape[:1]:
            raise ValueError(f"features {tuple(features.shape)}, labels {tuple(labels.shape)}")
        if len(labels) and int(labels.min()) < 0:
            raise ValueError(f"labels must not be negative, and one is {int(labels.min())}")
        x = features.detach().double()
        if not x.isfinite().all():
            raise ValueError("features must be finite, and one is NaN or infinite")
        count = max(classes, int(labels.max()) + 1 if len(labels) else 0)
        sums = x.new_zeros(count, x.shape[1]).index_add_(0, labels, x)
        return cls(x.T @ x, sums, torch.bincount(labels, minlength=count))

    def __add__(self, other: "Statistics") -> "Statistics":
        classes = max(len(self.counts), len(other.counts))
        mine, theirs = self.grown(classes), other.grown(classes)
        return Statistics(
            mine.gram + theirs.gram, mine.sums + theirs.sums, mine.counts + theirs.counts
        )

    def take_in(self, added: "Statistics", labels: Tensor, classes: int = 0) -> "Statistics":
        """Add statistics of a few classes to these tensors themselves.

        The sums are those of `+`, bit for bit, in a time that does not depend on how many classes
        there are in all.

        Args:
            added: of k classes.
            labels: int64 (k,), the label of each of them here; none twice.
            classes: K becomes at least this.

        Returns:
            these statistics; others, which share the tensors that did not grow, if K grew.

        Raises:
            ValueError: a label is negative, or there is not one for each class.
        """
        if len(labels) != len(added.counts) or (len(labels) and int(labels.min()) < 0):
            raise ValueError(f"{len(added.counts)} classes have labels {labels.tolist()[:10]}")
        mine = self.grown(max(classes, int(labels.max()) + 1 if len(labels) else 0))
        mine.gram.add_(added.gram)
        mine.sums.index_add_(0, labels, added.sums)
        mine.counts.index_add_(0, labels, added.counts)
        return mine

    def grown(self, classes: int) -> "Statistics":
        """Return the statistics with empty rows for classes that are still to come."""
        more = classes - len(self.counts)
        if more <= 0:
            return self
        sums = torch.cat([self.sums, self.sums.new_zeros(more, self.sums.shape[1])])
        return Statistics(self.gram, sums, torch.cat([self.counts, self.counts.new_zeros(more)]))

    @property
    def dim(self) -> int:
        """D, the length of a feature."""
        return len(self.gram)

    @property
    def number(self) -> int:
        """N, how many features were summed."""
        return int(self.counts.sum())

    @property
    def seen(self) -> Tensor:
        """Bool (K,): the classes that have features."""
        return self.counts > 0

    @staticmethod
    def size(dim: int, classes: int) -> int:
        """Return the bytes of the statistics of features (N, dim) of so many classes."""
        return 8 * (dim * dim + classes * dim + classes)

    @property
    def bytes(self) -> int:
        """The size of all tensors."""
        return sum(t.numel() * t.element_size() for t in self.state_dict().values())

    def means(self) -> Tensor:
        """Return the class means (K, D); zero for a class without features."""
        return self.sums / self.counts.clamp(min=1)[:, None]

    def scatter(self) -> Tensor:
        """Return the scatter within classes (D, D): the sum of (x - mu_y)(x - mu_y)'."""
        return self.gram - self.sums.T @ self.means()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {"gram": self.gram, "sums": self.sums, "counts": self.counts}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Statistics":
        """Return the statistics that `state_dict` described.

        Raises:
            KeyError: a tensor is missing.
            ValueError: shapes or types are not those of statistics.
        """
        gram, sums, counts = (state[name] for name in ("gram", "sums", "counts"))
        right = gram.dim() == 2 and gram.shape == (gram.shape[1],) * 2
        right = right and sums.shape == (len(counts), len(gram)) and counts.dim() == 1
        types = (gram.dtype, sums.dtype, counts.dtype)
        if not right or types != (torch.float64, torch.float64, torch.int64):
            raise ValueError("not the statistics of features")
        return cls(gram, sums, counts)
