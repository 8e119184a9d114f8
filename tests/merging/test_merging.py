"""Merging, distances and paths against numbers worked out by hand and plain PyTorch."""

import copy
import inspect
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from cl_clipfit import merging
from cl_clipfit.clip import CLIPClassifier

Named = dict[str, Tensor]
# Each of the merging functions on a base, with what makes it keep every entry.
ONTO_BASE = {
    "task_arithmetic": {},
    "ties": {"density": 1.0},
    "dare": {"drop": 0.0},
    "magmax": {},
}
METHODS = {name: getattr(merging, name) for name in ONTO_BASE}


def row(**entries: list[float] | float) -> Named:
    return {name: torch.tensor(value) for name, value in entries.items()}


def draw(seed: int, scale: float = 1.0) -> Named:
    """Return values of several shapes, a scalar among them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"gain": (7,), "matrix": (5, 4), "scalar": ()}
    return {n: scale * torch.randn(s, generator=generator) for n, s in shapes.items()}


def flat(values: Named) -> Tensor:
    return torch.cat([value.flatten() for value in values.values()])


def same_bits(one: Named, other: Named) -> bool:
    """Return whether values are equal, signs of zeros included."""
    return list(one) == list(other) and all(
        torch.equal(value.view(torch.int32), other[name].view(torch.int32))
        for name, value in one.items()
    )


def close(one: Named, other: Named, atol: float = 1e-6) -> bool:
    return list(one) == list(other) and torch.allclose(flat(one), flat(other), atol=atol)


def test_interpolation_by_hand_and_at_its_ends() -> None:
    start, end = row(a=[0.0, 2.0], b=-1.0), row(a=[4.0, 2.0], b=1.0)
    assert close(merging.interpolate(start, end, 0.25), row(a=[1.0, 2.0], b=-0.5))
    assert close(merging.interpolate(start, end, 1.5), row(a=[6.0, 2.0], b=2.0))
    # Sizes far apart, and both zeros: start + 1 (end - start) would miss them.
    start, end = row(a=[1e8, -0.0, 0.0, 1.0]), row(a=[1.23456, 0.0, -0.0, -0.0])
    assert same_bits(merging.interpolate(start, end, 0.0), start)
    assert same_bits(merging.interpolate(start, end, 1.0), end)
    half = {"a": end["a"].half()}
    assert same_bits(merging.interpolate(half, start, 0.0), {"a": half["a"].float()})


def test_interpolation_passes_gradients() -> None:
    start, end = row(a=[1.0, 2.0]), row(a=[3.0, 5.0])
    for values in (start, end):
        values["a"].requires_grad_(True)
    merging.interpolate(start, end, 0.3)["a"].square().sum().backward()
    point = torch.tensor([1.6, 2.9])
    assert torch.allclose(start["a"].grad, 0.7 * 2 * point)
    assert torch.allclose(end["a"].grad, 0.3 * 2 * point)


def test_mean_by_hand() -> None:
    tasks = [row(a=[1.0, 2.0]), row(a=[3.0, -2.0]), row(a=[5.0, 3.0])]
    assert close(merging.mean(tasks), row(a=[3.0, 1.0]))
    assert same_bits(merging.mean(tasks[:1]), tasks[0])


def test_task_arithmetic_by_hand() -> None:
    base, tasks = row(a=[1.0, 1.0]), [row(a=[2.0, 1.0]), row(a=[4.0, -1.0])]
    assert close(merging.task_arithmetic(base, tasks, 0.5), row(a=[3.0, 0.0]))


def test_ties_by_hand() -> None:
    base = row(a=[10.0, 10.0, 10.0], b=[[0.0, 0.0]])
    deltas = [
        row(a=[5.0, -4.0, 0.1], b=[[3.0, 0.2]]),
        row(a=[1.0, -3.0, 0.3], b=[[-3.0, 2.0]]),
        row(a=[-2.0, 4.0, 0.2], b=[[0.1, 0.3]]),
    ]
    tasks = [{n: base[n] + d[n] for n in base} for d in deltas]
    # 3 of 5 entries survive: 5 -4 . 3 . | . -3 . -3 2 | -2 4 . . 0.3.
    # Sums: 3, -3, 0, 0, 2.3; so 5 alone, (-4 - 3) / 2, none, a tie, (2 + 0.3) / 2.
    expected = row(a=[15.0, 6.5, 10.0], b=[[0.0, 1.15]])
    assert close(merging.ties(base, tasks, density=0.6), expected)
    half = row(a=[12.5, 8.25, 10.0], b=[[0.0, 0.575]])
    assert close(merging.ties(base, tasks, scale=0.5, density=0.6), half)


def test_ties_trims_over_all_tensors_together() -> None:
    base = {"large": torch.zeros(10), "small": torch.zeros(10)}
    task = {"large": torch.arange(1.0, 11.0), "small": torch.linspace(0.01, 0.1, 10)}
    merged = merging.ties(base, [task], density=0.25)
    assert merged["small"].count_nonzero() == 0
    assert merged["large"].tolist() == [0.0] * 5 + [6.0, 7.0, 8.0, 9.0, 10.0]
    # 1 % of 20 entries rounds to none: one stays.
    assert flat(merging.ties(base, [task], density=0.01)).nonzero().tolist() == [[9]]


@pytest.mark.parametrize("density", [0.1, 0.2, 0.5, 1.0])
def test_ties_against_a_flat_reference(density: float) -> None:
    base, tasks = draw(0), [draw(seed) for seed in (1, 2, 3)]
    expected = flat(base).clone()
    deltas = np.stack([(flat(task) - flat(base)).numpy() for task in tasks])
    kept = round(density * deltas.shape[1])
    for delta in deltas:
        delta[np.argsort(-np.abs(delta))[kept:]] = 0
    for entry, column in enumerate(deltas.T):
        agreeing = [d for d in column if d * column.sum() > 0]
        expected[entry] += np.mean(agreeing) if agreeing else 0.0
    merged = merging.ties(base, tasks, density=density)
    assert torch.allclose(flat(merged), expected, atol=1e-6)


def test_dare_drops_and_rescales() -> None:
    base = {"a": torch.ones(40_000), "b": torch.zeros(2, 3)}
    task = {"a": torch.full((40_000,), 1.5), "b": torch.zeros(2, 3)}
    step = merging.dare(base, [task], drop=0.9)["a"] - 1
    kept = step != 0
    assert torch.allclose(step[kept], torch.tensor(5.0))
    assert kept.float().mean().item() == pytest.approx(0.1, abs=0.01)  # over six deviations
    # Two tasks have masks of their own, and are averaged: 0, 2.5 or 5.
    step = merging.dare(base, [task, task], drop=0.9)["a"] - 1
    shares = [(step - size).abs().lt(1e-4).float().mean().item() for size in (0.0, 2.5, 5.0)]
    assert shares == pytest.approx([0.81, 0.18, 0.01], abs=0.01)
    assert sum(shares) == pytest.approx(1.0)


def test_dare_depends_on_its_seed_alone() -> None:
    base, tasks = draw(0), [draw(1), draw(2)]
    state = torch.get_rng_state()
    first = merging.dare(base, tasks, drop=0.5, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert same_bits(merging.dare(base, tasks, drop=0.5, seed=3), first)
    assert not same_bits(merging.dare(base, tasks, drop=0.5, seed=4), first)


def test_dare_keeps_the_expectation() -> None:
    base, tasks = draw(0), [draw(1), draw(2)]
    runs = [flat(merging.dare(base, tasks, drop=0.5, seed=seed)) for seed in range(2000)]
    expected = flat(merging.mean(tasks))
    spread = torch.stack(runs).std(0) / 2000**0.5
    assert ((torch.stack(runs).mean(0) - expected).abs() < 5 * spread).all()


def test_magmax_by_hand() -> None:
    base = row(a=[1.0, 1.0, 1.0, 1.0])
    tasks = [row(a=[2.0, 0.0, 1.0, 3.0]), row(a=[-1.0, 1.5, 1.0, -1.0])]
    # Deltas: 1 -1 0 2 | -2 .5 0 -2; of equal ones the later.
    assert close(merging.magmax(base, tasks), row(a=[-1.0, 0.0, 1.0, -1.0]))
    assert close(merging.magmax(base, tasks, 0.5), row(a=[0.0, 0.5, 1.0, 0.0]))


def test_fisher_by_hand() -> None:
    tasks = [row(a=[1.0, 1.0, 1.0, 2.0]), row(a=[4.0, 4.0, 4.0, 5.0])]
    # Weights 2:1, 0:3, both below the floor, and 1:2 however small.
    fishers = [row(a=[2.0, 0.0, 0.0, 1e-30]), row(a=[1.0, 3.0, 1e-40, 2e-30])]
    merged = merging.fisher(tasks, fishers, floor=1e-35)
    assert close(merged, row(a=[2.0, 4.0, 2.5, 4.0]))
    equal = [{"a": torch.full((4,), 7.0)}] * 2
    assert close(merging.fisher(tasks, equal), merging.mean(tasks))


@pytest.mark.parametrize("name", ONTO_BASE)
def test_on_a_base_what_holds_for_every_method(name: str) -> None:
    method, everything = METHODS[name], ONTO_BASE[name]
    base, tasks = draw(0), [draw(1), draw(2), draw(3)]
    base["gain"][:2] = torch.tensor([0.0, -0.0])
    assert same_bits(method(base, tasks, scale=0.0), base)
    assert same_bits(method(base, [base, base], scale=0.7, **everything), base)
    assert close(method(base, tasks[:1], **everything), tasks[0])
    line = merging.interpolate(base, tasks[0], 0.4)
    assert close(method(base, tasks[:1], scale=0.4, **everything), line)
    merged = method(base, tasks, scale=0.4, **everything)
    for order in itertools.permutations(tasks):
        assert close(method(base, order, scale=0.4, **everything), merged)
    shifted = [{n: v + 3 for n, v in values.items()} for values in (base, *tasks)]
    expected = {n: v + 3 for n, v in merged.items()}
    assert close(method(shifted[0], shifted[1:], scale=0.4, **everything), expected, 1e-5)
    with pytest.raises(ValueError, match="no values given"):
        method(base, [])


def test_every_method_is_covered() -> None:
    functions = {n: getattr(merging, n) for n in merging.__all__ if n[0].islower()}
    onto_base = [n for n, f in functions.items() if "base" in inspect.signature(f).parameters]
    assert sorted(onto_base) == sorted(ONTO_BASE)


def test_soups_do_not_depend_on_the_order() -> None:
    tasks, fishers = [draw(s) for s in (1, 2, 3)], [draw(s) for s in (4, 5, 6)]
    fishers = [{n: v.square() for n, v in f.items()} for f in fishers]
    weighted = merging.fisher(tasks, fishers)
    total = sum(flat(f) for f in fishers)
    by_hand = sum(flat(f) * flat(t) for f, t in zip(fishers, tasks, strict=True)) / total
    assert torch.allclose(flat(weighted), by_hand, atol=1e-5)
    for order in itertools.permutations(range(3)):
        ordered = [tasks[i] for i in order]
        assert close(merging.mean(ordered), merging.mean(tasks))
        assert close(merging.fisher(ordered, [fishers[i] for i in order]), weighted)


CALLS: dict[str, Callable[[Named, Named], object]] = {
    "interpolate": lambda a, b: merging.interpolate(a, b, 0.5),
    "interpolate to an end": lambda a, b: merging.interpolate(a, b, 1.0),
    "mean": lambda a, b: merging.mean([a, b]),
    "fisher": lambda a, b: merging.fisher([a, a], [b, b]),
    "regmean": lambda a, b: merging.regmean([a, b], [merging.Moments(1, {}, {})] * 2),
    "regmean's moments": lambda a, b: merging.regmean([a, a], [merging.Moments(1, a, b)] * 2),
    "task-arithmetic": lambda a, b: merging.task_arithmetic(a, [b]),
    "ties": lambda a, b: merging.ties(a, [b]),
    "dare": lambda a, b: merging.dare(a, [b]),
    "magmax": lambda a, b: merging.magmax(a, [b]),
    "segment": lambda a, b: merging.segment(a, b),
    "distance": lambda a, b: merging.distance(a, a, b, dict.fromkeys(a, "g")),
    "distance with a Fisher": lambda a, b: merging.distance(a, a, a, dict.fromkeys(a, "g"), b),
    "proximal_step": lambda a, b: merging.proximal_step(
        a, [merging.Pull(b, dict.fromkeys(a, torch.tensor(1.0)))], 1.0
    ),
    "length_ratio": lambda a, b: merging.length_ratio(a, b, a),
    "direction_cosine": lambda a, b: merging.direction_cosine(a, b, a),
    "plane": lambda a, b: merging.plane(a, draw(7), b),
}


@pytest.mark.parametrize("name", CALLS)
def test_inputs_stay_and_must_match(name: str) -> None:
    call = CALLS[name]
    one, other = draw(0), {n: v.square() for n, v in draw(1).items()}
    before = copy.deepcopy((one, other))
    result = call(one, other)
    assert same_bits(one, before[0])
    assert same_bits(other, before[1])
    if isinstance(result, dict):
        for value in result.values():
            value.fill_(9.0)  # results share no memory with what they came from
        assert same_bits(one, before[0])
        assert same_bits(other, before[1])
    less = {n: v for n, v in other.items() if n != "matrix"}
    with pytest.raises(ValueError, match="tensor matrix is missing in set"):
        call(one, less)
    with pytest.raises(ValueError, match="tensor extra is missing in set"):
        call(one, {**other, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"tensor gain has shape \[7\] in set 1, \[1\] in set"):
        call(one, {**other, "gain": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"tensor gain is torch.int64 in set"):
        call(one, {**other, "gain": torch.zeros(7, dtype=torch.int64)})


def test_results_are_fp32_in_the_order_of_the_first() -> None:
    half = {n: v.half() for n, v in draw(0).items()}
    other = {n: v.double().requires_grad_() for n, v in reversed(draw(1).items())}
    merged = [method(half, [other]) for method in METHODS.values()]
    merged += [merging.mean([half, other]), merging.interpolate(half, other, 0.5)]
    for result in merged:
        assert list(result) == ["gain", "matrix", "scalar"]
        assert {value.dtype for value in result.values()} == {torch.float32}
    assert not merged[0]["gain"].requires_grad
    assert merged[-1]["gain"].requires_grad


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: merging.mean([]), "no values given"),
        (lambda v: merging.ties(v, [v], density=0.0), "density 0.0 must be above 0"),
        (lambda v: merging.ties(v, [v], density=1.1), "density 1.1 must be above 0"),
        (lambda v: merging.dare(v, [v], drop=1.0), "drop 1.0 must be at least 0 and below 1"),
        (lambda v: merging.dare(v, [v], drop=-0.1), "drop -0.1"),
        (lambda v: merging.fisher([v, v], [v]), "2 sets of values with 1 Fishers"),
        (lambda v: merging.fisher([v], [row(a=[1.0, -1.0])]), "Fisher of tensor a has negative"),
        (lambda v: merging.fisher([v], [row(a=[1.0, math.nan])]), "Fisher of tensor a has"),
        (lambda v: merging.fisher([v], [v], floor=0.0), "floor 0.0 must be above 0"),
        (lambda v: merging.distance(v, v, v, {}), "tensor a does not belong to a group"),
        (lambda v: merging.distance({}, {}, {}, {}), "no distance to measure"),
        (lambda v: merging.distance(v, v, v, {"a": "g"}, floor=0.0), "floor 0.0"),
        (
            lambda v: merging.distance(v, v, v, {"a": "g"}, row(a=[0.0, 0.0])),
            "the Fisher's mean is 0.0",
        ),
        (lambda v: merging.segment(v, v, points=1), "points 1 must be at least 2"),
        (lambda v: merging.barrier([1.0]), "a path has at least its two ends"),
        (lambda v: merging.barrier([1.0, math.nan, 1.0]), "the loss at point 1 of the path is nan"),
    ],
)
def test_bad_input_is_one_line(call: Callable[[Named], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call(row(a=[1.0, 2.0]))
    assert "\n" not in str(error.value)


GROUPS = {"gain": "image", "matrix": "text", "scalar": "image", "unused": "other"}


def test_distance_by_hand() -> None:
    anchor = row(gain=[1.0, 1.0], matrix=[[0.0]], scalar=2.0)
    reference = row(gain=[1.0, 3.0], matrix=[[0.1]], scalar=2.0)
    values = row(gain=[2.0, 1.0], matrix=[[0.3]], scalar=5.0)
    # image: (1 + 9) / 4; text: 0.09 / 0.01
    assert merging.distance(values, anchor, reference, GROUPS).item() == pytest.approx(11.5)
    # A unit of 0 is the floor.
    unmoved = {**reference, "matrix": anchor["matrix"]}
    still = merging.distance(values, anchor, unmoved, GROUPS, floor=0.5)
    assert still.item() == pytest.approx(2.5 + 0.09 / 0.5)


def test_distances_at_anchor_and_reference() -> None:
    anchor, fisher = draw(0), {n: v.square() for n, v in draw(4).items()}
    # Fine-tuning moves little, and the Fisher's scale is arbitrary and small.
    fisher = {n: 1e-12 * v for n, v in fisher.items()}
    reference = {n: v + 1e-3 * draw(1)[n] for n, v in anchor.items()}
    own = {name: name for name in anchor}
    for groups, count in ((GROUPS, 2), (own, 3)):
        for measure in (
            lambda v, g=groups: merging.distance(v, anchor, reference, g),
            lambda v, g=groups: merging.distance(v, anchor, reference, g, fisher),
        ):
            assert measure(anchor).item() == 0
            assert measure(reference).item() == pytest.approx(count)
            middle = merging.interpolate(anchor, reference, 0.5)
            assert measure(middle).item() == pytest.approx(count / 4, rel=1e-3)
    unmoved = {**reference, "matrix": anchor["matrix"]}
    assert merging.distance(unmoved, anchor, unmoved, own).item() == pytest.approx(2)


def test_fisher_distance_by_hand() -> None:
    anchor, reference = row(gain=[0.0, 0.0], matrix=[0.0]), row(gain=[1.0, 0.0], matrix=[2.0])
    values, fisher = row(gain=[0.5, 7.0], matrix=[3.0]), row(gain=[4.0, 0.0], matrix=[1.0])
    # 2 groups * (4 * 0.25 + 0 * 49 + 1 * 9) / (4 * 1 + 1 * 4)
    distance = merging.distance(values, anchor, reference, GROUPS, fisher)
    assert distance.item() == pytest.approx(2.5)
    scaled = {n: 1e-9 * f for n, f in fisher.items()}
    distance = merging.distance(values, anchor, reference, GROUPS, scaled)
    assert distance.item() == pytest.approx(2.5)
    # The floor is in the unit of the values: the Fisher's mean is 5/3.
    still = merging.distance(values, anchor, anchor, GROUPS, fisher, floor=0.5)
    assert still.item() == pytest.approx(2 * (10 / (5 / 3)) / 0.5)
    one, constant = dict.fromkeys(anchor, "g"), row(gain=[3.0, 3.0], matrix=[3.0])
    same = merging.distance(values, anchor, reference, one, constant)
    whole = merging.distance(values, anchor, reference, one)
    assert same.item() == pytest.approx(whole.item())


def test_distances_have_the_right_gradients() -> None:
    anchor, reference = draw(0), draw(1)
    fisher = {n: v.square() for n, v in draw(4).items()}
    values = {n: v.requires_grad_() for n, v in draw(2).items()}
    merging.distance(values, anchor, reference, GROUPS).backward()
    squares = {n: (reference[n] - anchor[n]).square().sum() for n in anchor}
    units = {"image": squares["gain"] + squares["scalar"], "text": squares["matrix"]}
    for name, value in values.items():
        expected = 2 * (value.detach() - anchor[name]) / units[GROUPS[name]]
        assert torch.allclose(value.grad, expected, rtol=1e-4)
        value.grad = None
    merging.distance(values, anchor, reference, GROUPS, fisher).backward()
    unit = sum((f * (reference[n] - anchor[n]).square()).sum() for n, f in fisher.items())
    for name, value in values.items():
        expected = 2 * 2 * fisher[name] * (value.detach() - anchor[name]) / unit
        assert torch.allclose(value.grad, expected, rtol=1e-4)


def test_length_and_direction() -> None:
    start, end = row(a=[1.0, 1.0], b=1.0), row(a=[1.0, 4.0], b=5.0)
    values = row(a=[13.0, 1.0], b=1.0)
    assert merging.length_ratio(values, start, end) == pytest.approx(12 / 5)
    assert merging.direction_cosine(values, start, end) == pytest.approx(0.0)
    assert merging.direction_cosine(row(a=[1.0, 1.0], b=9.0), start, end) == pytest.approx(0.8)
    assert merging.direction_cosine(row(a=[1.0, -2.0], b=-3.0), start, end) == pytest.approx(-1)
    for alpha in (0.0, 0.3, 1.0, 1.7):
        point = merging.interpolate(start, end, alpha)
        assert merging.length_ratio(point, start, end) == pytest.approx(alpha, abs=1e-6)
    assert merging.length_ratio(start, start, start) == 0.0
    assert merging.length_ratio(values, start, start) == math.inf
    assert merging.direction_cosine(start, start, end) is None
    assert merging.direction_cosine(values, start, start) is None


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("midpoints-1", [0.5]),
        ("midpoints-5", [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("grid-1", [0.1]),
        ("grid-2", [0.1, 0.6]),
        ("grid-5", [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("grid-10", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ("grid-15", [0.1 + i / 15 for i in range(14)]),
        ("grid-11", [0.1 + i / 11 for i in range(11)]),  # up to 1.009
    ],
)
def test_fixed_positions_leave_the_generator_alone(rule: str, expected: list[float]) -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert merging.path_positions(rule, generator) == pytest.approx(expected)
    assert torch.equal(generator.get_state(), before)


def test_uniform_positions() -> None:
    def draws(seed: int) -> list[float]:
        generator = torch.Generator().manual_seed(seed)
        return [
            alpha for _ in range(4000) for alpha in merging.path_positions("uniform", generator)
        ]

    state = torch.get_rng_state()
    alphas = draws(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert (len(alphas), alphas) == (4000, draws(0))
    assert alphas != draws(1)
    counts = np.histogram(alphas, bins=10, range=(0, 1))[0]
    assert counts.sum() == 4000
    assert abs(counts - 400).max() < 5 * (4000 * 0.1 * 0.9) ** 0.5


def test_path_rules() -> None:
    for rule in ("uniform", "midpoints-1", "grid-9", "grid-10", "midpoints-99", "grid-100"):
        assert merging.check_path_rule(rule) == rule
    wrong = ("", "Uniform", "uniform-3", "grid", "grid-0", "grid-05", "grid-101", "midpoints--1")
    for rule in (*wrong, "midpoints-2.5", "grid-5 ", "grid-5\n", "random"):
        with pytest.raises(ValueError, match="must be uniform, midpoints-N or grid-N"):
            merging.check_path_rule(rule)
        with pytest.raises(ValueError, match="must be uniform, midpoints-N or grid-N"):
            merging.path_positions(rule, torch.Generator())


def test_barrier() -> None:
    assert merging.barrier([1.0, 2.0, 5.0, 2.5]) == pytest.approx(3.0)  # 5 - 2
    assert merging.barrier([3.0, 1.0, 0.5, 0.0]) == 0.0  # below the line: no barrier
    assert merging.barrier([0.7, 0.7]) == 0.0
    rising = [1.0, 2.0, 3.0]
    assert merging.barrier(rising) == 0.0
    for tilt in (-3.0, 0.0, 4.0):  # a straight slope adds none
        losses = [i * (10 - i) / 10 + tilt * i for i in range(11)]
        assert merging.barrier(losses) == pytest.approx(2.5)
        assert merging.barrier(losses[::-1]) == pytest.approx(2.5)


def test_segment() -> None:
    start, end = draw(0), draw(1)
    steps = list(merging.segment(start, end, points=5))
    assert [alpha for alpha, _ in steps] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert same_bits(steps[0][1], start)
    assert same_bits(steps[-1][1], end)
    for alpha, values in steps:
        expected = (1 - alpha) * flat(start) + alpha * flat(end)
        assert torch.allclose(flat(values), expected, atol=1e-6)
    assert len(list(merging.segment(start, end))) == 11


def test_plane_by_hand() -> None:
    origin, first, second = (
        row(a=[1.0, 1.0], b=1.0),
        row(a=[3.0, 1.0], b=1.0),
        row(a=[2.0, 1.0], b=4.0),
    )
    drawn = merging.plane(origin, first, second)
    assert (drawn.u_length, drawn.v_length) == pytest.approx((2.0, 3.0))
    assert drawn.coordinates(second) == pytest.approx((0.5, 1.5))
    assert close(drawn.values(2.0, -1.0), row(a=[5.0, 1.0], b=-1.0))
    # Off the plane: its nearest point.
    assert drawn.coordinates(row(a=[3.0, 9.0], b=-1.0)) == pytest.approx((1.0, -1.0))


def test_plane_of_values_that_moved_little() -> None:
    origin = draw(0)
    first = {n: v + 1e-3 * draw(1)[n] for n, v in origin.items()}
    second = {n: v + 2e-3 * draw(2)[n] for n, v in origin.items()}
    drawn = merging.plane(origin, first, second)
    assert drawn.coordinates(origin) == (0.0, 0.0)
    assert drawn.coordinates(first) == pytest.approx((1.0, 0.0), abs=1e-3)
    x, y = drawn.coordinates(second)
    assert y > 0
    assert close(drawn.values(0, 0), origin)
    assert close(drawn.values(1, 0), first)
    assert close(drawn.values(x, y), second)
    assert (flat(drawn.u) @ flat(drawn.v)).item() == pytest.approx(0.0, abs=1e-6)
    assert flat(drawn.u).norm().item() == pytest.approx(1.0)
    assert flat(drawn.v).norm().item() == pytest.approx(1.0)
    for point in ((0.3, -0.7), (-2.0, 1.5)):
        assert drawn.coordinates(drawn.values(*point)) == pytest.approx(point, abs=1e-3)


def test_no_plane_through_points_on_a_line() -> None:
    origin = draw(0)
    first = {n: v + 1e-2 * draw(1)[n] for n, v in origin.items()}
    for alpha in (0.0, 0.37, 1.0, -0.6):
        with pytest.raises(ValueError, match="the three points are collinear"):
            merging.plane(origin, first, merging.interpolate(origin, first, alpha))
    with pytest.raises(ValueError, match="the first point equals the origin"):
        merging.plane(origin, copy.deepcopy(origin), first)


def test_values_of_a_model(tiny: Callable[..., CLIPClassifier]) -> None:
    """Trained parameters come and go by name; interpolated ones are between, and so load."""
    model = tiny()
    norms = [p for n, p in model.named_parameters() if "visual" in n and "ln_" in n]
    selection = model.train_only(norms)
    start = model.pretrained_values
    end = {n: p.detach() + 0.1 for n, p in selection.items()}
    model.load_values(merging.interpolate(start, end, 0.5))
    ratio, cosine = (
        f(selection, start, end) for f in (merging.length_ratio, merging.direction_cosine)
    )
    assert (ratio, cosine) == pytest.approx((0.5, 1.0), abs=1e-5)
    merging.distance(selection, start, end, {n: n for n in selection}).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in norms)


@pytest.mark.parametrize("density", [0.25, 0.5, 0.75])
def test_ties_and_dare_agree_with_peft(density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one tensor: PEFT trims and thins each alone, and keeps a plus where a sum is exactly 0."""
    peft = pytest.importorskip("peft.utils.merge_utils")
    draws = torch.Generator().manual_seed(5)
    base, tasks = torch.randn(4, 10, generator=draws), torch.randn(3, 4, 10, generator=draws)
    values = [{"w": base + task} for task in tasks]
    ones, shares = torch.ones(3), torch.full((3,), 1 / 3)
    found = merging.ties({"w": base}, values, density=density)["w"] - base
    torch.testing.assert_close(found, peft.ties(list(tasks), ones, density), rtol=0, atol=1e-5)
    seeded = torch.Generator().manual_seed(0)
    masks = iter((torch.rand(3, 4, 10, generator=seeded) >= 1 - density).float())
    monkeypatch.setattr(torch, "bernoulli", lambda input: next(masks))
    found = merging.dare({"w": base}, values, drop=1 - density)["w"] - base
    expected = peft.dare_linear(list(tasks), shares, density)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
