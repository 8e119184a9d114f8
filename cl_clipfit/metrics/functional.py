"""Every metric of a run, as a pure function of its accuracy tables and sample counts.

A table has rows t = 0..T (row 0 before any training) and columns j = 1..T (list index j-1), in
percent; R[t][j] is the accuracy on task j after task t. What is undefined is None.

*Forgetting* has many definitions. Ours is Chaudhry et al.'s: the best accuracy a task ever had
after it was learned and before the end, minus its last one. Others, from the same table:

- Avalanche's `StreamForgetting`: first minus last, the negative of backward transfer, no maximum.
- Mammoth, PILOT and PyCIL: the maximum includes the last row, so that it is never negative.
- continuum: backward transfer averaged over all pairs t > j, not the last row alone.
"""

from collections.abc import Mapping, Sequence

TableLike = Sequence[Sequence[float | None]]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _cell(table: TableLike, t: int, j: int) -> float:
    value = table[t][j - 1]
    if value is None:
        raise ValueError(f"the table has no accuracy on task {j} after task {t}")
    return value


def seen_accuracy(table: TableLike, test_samples: Sequence[int], t: int) -> float | None:
    """A_t: accuracy over the test samples of tasks 1..t after task t, weighted by samples.

    A_t = sum_j n_j R[t][j] / sum_j n_j, j = 1..t; equal to the top-1 accuracy over all classes seen
    (Rebuffi et al. 2017, iCaRL, section 4.1). None for t = 0.

    Example:
        >>> seen_accuracy([[None, None], [90.0, None], [60.0, 80.0]], [10, 30], t=2)
        75.0
    """
    if t == 0:
        return None
    total = sum(test_samples[:t])
    return sum(n * _cell(table, t, j) for j, n in enumerate(test_samples[:t], 1)) / total


def average_accuracy(table: TableLike, test_samples: Sequence[int]) -> float | None:
    """Mean of A_t over t = 1..T ("average incremental accuracy", iCaRL; "Avg").

    Example:
        >>> average_accuracy([[None, None], [90.0, None], [60.0, 80.0]], [10, 30])
        82.5
    """
    curve = [seen_accuracy(table, test_samples, t) for t in range(1, len(table))]
    return _mean([a for a in curve if a is not None])


def last_accuracy(table: TableLike, test_samples: Sequence[int]) -> float | None:
    """A_T: accuracy over all classes after the last task ("Last").

    Example:
        >>> last_accuracy([[None, None], [90.0, None], [60.0, 80.0]], [10, 30])
        75.0
    """
    return seen_accuracy(table, test_samples, len(table) - 1)


def learning_accuracy(table: TableLike) -> float | None:
    """Mean of R[t][t]: how well each task was learned, just after it (Riemer et al. 2019, LA).

    Example:
        >>> learning_accuracy([[None, None], [90.0, None], [60.0, 80.0]])
        85.0
    """
    return _mean([_cell(table, t, t) for t in range(1, len(table))])


def forgetting(table: TableLike, after: int | None = None) -> float | None:
    """Mean over tasks j < t of max over j <= s < t of R[s][j], minus R[t][j] (default: t = T).

    Chaudhry et al. 2018 (arXiv 1801.10112), equation 3. Negative where old tasks improved. None
    where there is no earlier task.

    Example:
        >>> forgetting([[None] * 3, [90.0, None, None], [95.0, 80.0, None], [70.0, 85.0, 88.0]])
        10.0
    """
    t = len(table) - 1 if after is None else after
    drops = []
    for j in range(1, t):
        best = max(_cell(table, s, j) for s in range(j, t))
        drops.append(best - _cell(table, t, j))
    return _mean(drops)


def backward_transfer(table: TableLike) -> float | None:
    """Mean over j < T of R[T][j] - R[j][j] (Lopez-Paz and Ranzato 2017, GEM, equation 3).

    Example:
        >>> backward_transfer([[None, None], [90.0, None], [60.0, 80.0]])
        -30.0
    """
    last = len(table) - 1
    return _mean([_cell(table, last, j) - _cell(table, j, j) for j in range(1, last)])


def forward_transfer(table: TableLike) -> float | None:
    """Mean over j >= 2 of R[j-1][j] - R[0][j], on the table of all classes.

    Lopez-Paz and Ranzato 2017, equation 4, with zero-shot CLIP (row 0) in place of random weights.

    Example:
        >>> forward_transfer([[50.0, 40.0], [90.0, 45.0], [60.0, 80.0]])
        5.0
    """
    columns = range(2, len(table))
    return _mean([_cell(table, j - 1, j) - _cell(table, 0, j) for j in columns])


def transfer(table: TableLike) -> float | None:
    """MTIL Transfer: mean over j >= 2 of the mean over 1 <= t < j of R[t][j], on the third table.

    Zheng et al. 2023 (ZSCL, arXiv 2303.06628): zero-shot accuracy kept on tasks not yet learned.

    Example:
        >>> transfer([[50.0, 40.0, 30.0], [90.0, 45.0, 20.0], [80.0, 85.0, 10.0], [0.0, 0.0, 0.0]])
        30.0
    """
    columns = range(2, len(table))
    means = [_mean([_cell(table, t, j) for t in range(1, j)]) for j in columns]
    return _mean([m for m in means if m is not None])


def retention(probes: Mapping[str, Sequence[float]], after: int = -1) -> float | None:
    """Mean over probes of the accuracy after task `after` (default: the last) minus before any.

    Example:
        >>> retention({"letters": [60.0, 55.0, 50.0], "shapes": [80.0, 80.0, 76.0]})
        -7.0
    """
    return _mean([accuracies[after] - accuracies[0] for accuracies in probes.values()])
