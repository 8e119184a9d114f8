"""Every metric of a run, as a pure function of its accuracy tables and sample counts.

A table has rows t = 0..T (row 0 before any training) and columns j = 1.. (list index j-1), in
percent; R[t][j] is the accuracy on task j after task t. Undefined values are None. T counts the
trained tasks: further columns are for tasks that are only tested, and only `mtil_average`,
`mtil_last` and `novel_accuracy` use them. A task without test samples is None in every row, and all
means leave it out; any other missing cell is an error.

*Forgetting* has many definitions. Ours is Chaudhry et al.'s: the best accuracy of a task after it
was learned and before the end, minus its last accuracy. Others, from the same table:

- Avalanche's `StreamForgetting`: first minus last, the negative of backward transfer, no maximum.
- Mammoth, PILOT and PyCIL: the maximum includes the last row, so it is never negative.
- continuum: backward transfer averaged over all pairs t > j, not only the last row.
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


def _tested(table: TableLike, first: int, last: int) -> list[int]:
    """Return the tasks first..last that have test samples: an accuracy in some row."""
    return [j for j in range(first, last + 1) if any(row[j - 1] is not None for row in table)]


def seen_accuracy(table: TableLike, test_samples: Sequence[int], t: int) -> float | None:
    """A_t: accuracy over the test samples of tasks 1..t after task t, weighted by samples.

    A_t = sum_j n_j R[t][j] / sum_j n_j, j = 1..t; equal to the top-1 accuracy over all classes seen
    (Rebuffi et al. 2017, iCaRL, section 4.1). None for t = 0 and if there are no samples.

    Example:
        >>> seen_accuracy([[None, None], [90.0, None], [60.0, 80.0]], [10, 30], t=2)
        75.0
    """
    total = sum(test_samples[:t])
    if total == 0:
        return None
    return sum(n * _cell(table, t, j) for j, n in enumerate(test_samples[:t], 1) if n) / total


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
    return _mean([_cell(table, t, t) for t in _tested(table, 1, len(table) - 1)])


def forgetting(table: TableLike, after: int | None = None) -> float | None:
    """Mean over tasks j < t of max over j <= s < t of R[s][j], minus R[t][j] (default: t = T).

    Chaudhry et al. 2018 (arXiv 1801.10112), equation 3. Negative if old tasks improved. None if
    there is no earlier task.

    Example:
        >>> forgetting([[None] * 3, [90.0, None, None], [95.0, 80.0, None], [70.0, 85.0, 88.0]])
        10.0
    """
    t = len(table) - 1 if after is None else after
    drops = []
    for j in _tested(table, 1, t - 1):
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
    earlier = _tested(table, 1, last - 1)
    return _mean([_cell(table, last, j) - _cell(table, j, j) for j in earlier])


def forward_transfer(table: TableLike) -> float | None:
    """Mean over j >= 2 of R[j-1][j] - R[0][j], on the table of all classes.

    Lopez-Paz and Ranzato 2017, equation 4, with zero-shot CLIP (row 0) in place of random weights.

    Example:
        >>> forward_transfer([[50.0, 40.0], [90.0, 45.0], [60.0, 80.0]])
        5.0
    """
    columns = _tested(table, 2, len(table) - 1)
    return _mean([_cell(table, j - 1, j) - _cell(table, 0, j) for j in columns])


def transfer(table: TableLike) -> float | None:
    """MTIL Transfer: mean over j >= 2 of the mean over 1 <= t < j of R[t][j], on the third table.

    Zheng et al. 2023 (ZSCL, arXiv 2303.06628): zero-shot accuracy kept on tasks not yet learned.

    Example:
        >>> transfer([[50.0, 40.0, 30.0], [90.0, 45.0, 20.0], [80.0, 85.0, 10.0], [0.0, 0.0, 0.0]])
        30.0
    """
    columns = _tested(table, 2, len(table) - 1)
    return _mean([sum(_cell(table, t, j) for t in range(1, j)) / (j - 1) for j in columns])


def mtil_average(table: TableLike) -> float | None:
    """MTIL Average: mean over t = 1..T and all j of R[t][j], on the third table.

    Zheng et al. 2023 (ZSCL, arXiv 2303.06628): the whole matrix, tasks not yet learned included.
    Every task has equal weight, however many samples it has.

    Example:
        >>> mtil_average([[50.0, 40.0], [90.0, 45.0], [80.0, 85.0]])
        75.0
    """
    columns = _tested(table, 1, len(table[0]))
    return _mean([_cell(table, t, j) for t in range(1, len(table)) for j in columns])


def mtil_last(table: TableLike) -> float | None:
    """MTIL Last: mean over all j of R[T][j], on the third table (as `mtil_average`).

    Example:
        >>> mtil_last([[50.0, 40.0], [90.0, 45.0], [80.0, 85.0]])
        82.5
    """
    last = len(table) - 1
    columns = _tested(table, 1, len(table[0])) if last else []
    return _mean([_cell(table, last, j) for j in columns])


def base_accuracy(table: TableLike) -> float | None:
    """R[1][1] on the third table: the base classes, which were trained, ranked among themselves.

    Zhou et al. 2022 (CoCoOp, arXiv 2203.05557), "Base". None unless one task is trained and two are
    tested.

    Example:
        >>> base_accuracy([[50.0, 40.0], [90.0, 45.0]])
        90.0
    """
    return table[1][0] if len(table) == 2 and len(table[1]) == 2 else None


def novel_accuracy(table: TableLike) -> float | None:
    """R[1][2] on the third table: classes that were not trained, ranked among themselves ("New").

    Zhou et al. 2022 (CoCoOp, arXiv 2203.05557). None as in `base_accuracy`.

    Example:
        >>> novel_accuracy([[50.0, 40.0], [90.0, 45.0]])
        45.0
    """
    return table[1][1] if len(table) == 2 and len(table[1]) == 2 else None


def harmonic_mean(a: float | None, b: float | None) -> float | None:
    """2ab / (a + b); 0 if both are 0, None if one is undefined.

    Xian et al. 2017, for seen and unseen classes; CoCoOp, arXiv 2203.05557, for base and novel.

    Example:
        >>> harmonic_mean(90.0, 45.0)
        60.0
    """
    if a is None or b is None:
        return None
    return 2 * a * b / (a + b) if a + b else 0.0


def retention(probes: Mapping[str, Sequence[float]], after: int = -1) -> float | None:
    """Mean over probes of the accuracy after task `after` (default: the last) minus the first.

    The first is that of zero-shot CLIP with the probe's own templates, for every method.

    Example:
        >>> retention({"letters": [60.0, 55.0, 50.0], "shapes": [80.0, 80.0, 76.0]})
        -7.0
    """
    return _mean([accuracies[after] - accuracies[0] for accuracies in probes.values()])


def probe_accuracy(probes: Mapping[str, Sequence[float]]) -> float | None:
    """Mean over probes of the accuracy after the last task; every probe has equal weight.

    Example:
        >>> probe_accuracy({"letters": [60.0, 55.0, 50.0], "shapes": [80.0, 80.0, 76.0]})
        63.0
    """
    return _mean([accuracies[-1] for accuracies in probes.values()])


def joint_accuracy(stream: Sequence[float | None]) -> float | None:
    """Accuracy on the classes seen after the last task, among them and the names of all probes.

    Xu et al. 2024 (RAIL, arXiv 2406.18868, NeurIPS, "X-TAIL"); see `metrics.joint.JointSpace`.

    Args:
        stream: accuracy on the test images of tasks 1..t in the joint label space, t = 0..T.

    Example:
        >>> joint_accuracy([None, 80.0, 70.0])
        70.0
    """
    return stream[-1] if stream else None


def joint_retention(
    probes: Mapping[str, Sequence[float]],
    zero_shot: Mapping[str, Sequence[float]],
    after: int = -1,
) -> float | None:
    """Mean over probes of the accuracy in the joint label space, minus that of zero-shot CLIP.

    Both choose among the classes seen by then and the names of all probes; zero-shot CLIP with the
    templates of the stream and of each probe.

    Example:
        >>> joint_retention({"a": [60.0, 40.0]}, {"a": [60.0, 80.0]})
        -40.0
    """
    return _mean([row[after] - zero_shot[name][after] for name, row in probes.items()])
