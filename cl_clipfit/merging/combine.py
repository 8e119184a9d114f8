"""Merge several sets of values into one; a delta is values - base.

Values are trained parameters by name. Every function takes sets with the same names and shapes,
leaves them unchanged, and returns new fp32 tensors by name, in the order and on the devices of
its first argument. Only `interpolate` propagates gradients.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

Values = Mapping[str, Tensor]


def tensors_of(*sets: Values) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield each name of the first set, and its tensor in every set as fp32 on one device.

    Only the tensors of one name are requested at a time, so that sets that read them from disk
    need not fit into memory. A tensor that is already fp32 on the right device is not copied.

    Raises:
        ValueError: there is no set, or a tensor is missing in another set, has another shape there,
            or is not floating point.
    """
    if not sets:
        raise ValueError("no values given: merging needs at least one set")
    first = sets[0]
    for number, other in enumerate(sets, 1):
        for name in [*first, *other]:
            if name not in first or name not in other:
                lacking = number if name in first else 1
                raise ValueError(f"tensor {name} is missing in set {lacking} of {len(sets)}")
    for name in first:
        tensors = [values[name] for values in sets]
        for number, tensor in enumerate(tensors, 1):
            if tensor.shape != tensors[0].shape:
                shapes = f"{[*tensors[0].shape]} in set 1, {[*tensor.shape]} in set {number}"
                raise ValueError(f"tensor {name} has shape {shapes}: only equal shapes merge")
            if not tensor.is_floating_point():
                raise ValueError(
                    f"tensor {name} is {tensor.dtype} in set {number}: only floats merge"
                )
        device = tensors[0].device
        yield name, [tensor.to(device, torch.float32) for tensor in tensors]


def aligned(*sets: Values) -> list[dict[str, Tensor]]:
    """Return sets of values as fp32, with the names, order and devices of the first.

    A tensor that is fp32 on the right device already is returned itself, not copied.

    Raises:
        ValueError: as `tensors_of`.
    """
    results: list[dict[str, Tensor]] = [{} for _ in sets]
    for name, tensors in tensors_of(*sets):
        for result, tensor in zip(results, tensors, strict=True):
            result[name] = tensor
    return results


def interpolate(start: Values, end: Values, alpha: float) -> dict[str, Tensor]:
    """Return start + alpha (end - start), with gradients.

    From zero-shot to fine-tuned values this is WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903).

    Args:
        start: returned bit for bit at alpha = 0, where no gradient reaches `end`.
        end: returned bit for bit at alpha = 1, where no gradient reaches `start`.
        alpha: any number; outside [0, 1] it extrapolates.

    Example:
        >>> interpolate({"w": torch.zeros(2)}, {"w": torch.ones(2)}, 0.25)
        {'w': tensor([0.2500, 0.2500])}
    """
    start, end = aligned(start, end)
    if alpha in (0, 1):
        return {name: value.clone() for name, value in (end if alpha else start).items()}
    return {name: torch.lerp(value, end[name], alpha) for name, value in start.items()}


def latest(values: Sequence[Values]) -> dict[str, Tensor]:
    """Return the last set as it is: fine-tuning without any merging."""
    return dict(values[-1])


@torch.no_grad()
def mean(values: Sequence[Values]) -> dict[str, Tensor]:
    """Return the plain average: a uniform model soup (Wortsman et al. 2022, arXiv 2203.05482)."""
    return {name: torch.stack(tensors).mean(0) for name, tensors in tensors_of(*values)}


@torch.no_grad()
def fisher(
    values: Sequence[Values], fishers: Sequence[Values], floor: float = 1e-12
) -> dict[str, Tensor]:
    """Return sum_t F_t w_t / sum_t F_t by entry: Matena and Raffel 2022, arXiv 2111.09832.

    Args:
        values: w_t, one set per task.
        fishers: F_t, the diagonal Fisher information at w_t, in the same order.
        floor: lower bound on the entries; if all are below it, the result is the plain mean. It is
            in the unit of the Fishers, whose scale is arbitrary: keep it below all meaningful
            entries.

    Raises:
        ValueError: the numbers of Fishers and of values differ, a Fisher has an entry that is
            negative, NaN or infinite, or the floor is not above 0.
    """
    if len(values) != len(fishers):
        raise ValueError(
            f"{len(values)} sets of values with {len(fishers)} Fishers: pass one per set"
        )
    if not floor > 0:
        raise ValueError(f"floor {floor} must be above 0")
    merged = {}
    for name, tensors in tensors_of(*values, *fishers):
        weights = torch.stack(tensors[len(values) :])
        if not ((weights >= 0) & weights.isfinite()).all():
            raise ValueError(f"the Fisher of tensor {name} has negative, NaN or infinite entries")
        weights = weights.clamp(min=floor)
        tuned = torch.stack(tensors[: len(values)])
        merged[name] = (weights * tuned).sum(0) / weights.sum(0)
    return merged


def _add(
    base: Values, values: Sequence[Values], scale: float, rule: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return base + scale * rule(deltas), where deltas is (tasks, *shape) for one tensor."""
    if not values:
        raise ValueError("no values given: merging needs at least one set in addition to the base")
    merged = {}
    for name, (value, *tuned) in tensors_of(base, *values):
        step = scale * rule(torch.stack([tensor - value for tensor in tuned]))
        # Adding 0 would turn a -0.0 of the base into 0.0.
        merged[name] = torch.where(step == 0, value, value + step)
    return merged


@torch.no_grad()
def task_arithmetic(
    base: Values, values: Sequence[Values], scale: float = 1.0
) -> dict[str, Tensor]:
    """Return base + scale * sum of deltas: Ilharco et al. 2023, arXiv 2212.04089."""
    return _add(base, values, scale, lambda deltas: deltas.sum(0))


@torch.no_grad()
def ties(
    base: Values, values: Sequence[Values], scale: float = 1.0, density: float = 0.2
) -> dict[str, Tensor]:
    """Return base + scale * the TIES merge of deltas: Yadav et al. 2023, arXiv 2306.01708.

    Trim every task's delta to its largest entries over all tensors together; elect, for each entry,
    the sign of the sum of the trimmed deltas; average only the deltas of that sign. If the sum is
    exactly 0, no sign is elected and the base is kept (the released code takes the majority sign of
    the other entries).

    Args:
        base: values from which all tasks started.
        values: one set per task.
        scale: factor on the merged delta.
        density: share of entries that survive trimming, above 0 and at most 1; rounded to an
            integer number of entries, at least one; ties with the smallest survivor survive too.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density {density} must be above 0 and at most 1")
    thresholds = [_threshold(base, task, density) for task in values]

    def rule(deltas: Tensor) -> Tensor:
        limits = deltas.new_tensor(thresholds).view(-1, *[1] * (deltas.dim() - 1))
        trimmed = torch.where(deltas.abs() >= limits, deltas, 0.0)
        agree = trimmed.sign() == trimmed.sum(0).sign()  # if the sum is 0: only zeros
        return (trimmed * agree).sum(0) / agree.sum(0).clamp(min=1)

    return _add(base, values, scale, rule)


def _threshold(base: Values, task: Values, density: float) -> float:
    """Return the magnitude of the smallest entry of a delta that survives trimming."""
    pairs = (tensors for _, tensors in tensors_of(base, task))
    sizes = [(end - start).abs().flatten().cpu() for start, end in pairs]
    flat = torch.cat(sizes) if sizes else torch.empty(0)
    if not len(flat):
        return 0.0
    kept = max(1, round(density * len(flat)))
    return float(flat.kthvalue(len(flat) - kept + 1).values)


@torch.no_grad()
def dare(
    base: Values,
    values: Sequence[Values],
    scale: float = 1.0,
    drop: float = 0.9,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return base + scale * mean of deltas thinned by DARE: Yu et al. 2024, arXiv 2311.03099.

    DARE itself only prepares deltas: for every task separately it drops random entries and rescales
    the others, which preserves the expectation. How they are then merged is a choice. Here they are
    averaged, the default of the released code; for its alternative, Task Arithmetic, multiply
    `scale` by the number of tasks.

    Args:
        base: values from which all tasks started.
        values: one set per task.
        scale: factor on the merged delta.
        drop: probability that an entry is dropped, at least 0 and below 1; the others are scaled by
            1/(1-drop).
        seed: seed of the masks, which also depend on the order of tasks and of names in `base`.
    """
    if not 0 <= drop < 1:
        raise ValueError(f"drop {drop} must be at least 0 and below 1")
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same masks on every device

    def rule(deltas: Tensor) -> Tensor:
        kept = torch.rand(deltas.shape, generator=generator).to(deltas.device) >= drop
        return (deltas * kept / (1 - drop)).mean(0)

    return _add(base, values, scale, rule)


@torch.no_grad()
def magmax(base: Values, values: Sequence[Values], scale: float = 1.0) -> dict[str, Tensor]:
    """Return base + scale * the delta of largest magnitude per entry (the last one in a tie).

    MagMax (Marczak et al. 2024, arXiv 2407.06322), where every task starts from the values of the
    previous one and all deltas are relative to the pretrained base.
    """

    def larger(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(other.abs() >= one.abs(), other, one)

    return _add(base, values, scale, lambda deltas: functools.reduce(larger, deltas))
