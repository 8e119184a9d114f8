"""Merging over tasks: each rule against plain PyTorch, where tasks start, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_clipfit import CLIPClassifier, CLIPStrategy, MergingStrategy, Recipe, Source, build_scenario
from cl_clipfit.cli.app import main
from cl_clipfit.registry import Registry
from cl_clipfit.strategies import fisher_merge
from cl_clipfit.strategies.clipfit import ClipFit
from tests.support.norms import normalised_inputs
from tests.support.tiny import TINY

Build = Callable[..., CLIPClassifier]
Values = dict[str, Tensor]
ENTRIES = {entry.name: entry for entry in Registry().entries("strategies")}
MERGING = [n for n, e in ENTRIES.items() if issubclass(e.strategy_class(), MergingStrategy)]
HOSTS = [n for n, e in ENTRIES.items() if not MergingStrategy.refuses(e.strategy_class())]
TASKS = 3


class Steps(ClipFit):
    """Keeps the weights that each task starts from."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        self.starts = [*getattr(self, "starts", []), copied(self.selection)]
        return super().parameter_groups()


def copied(values: Any) -> Values:
    return {name: value.detach().clone() for name, value in values.items()}


def learn(
    name: str, build: Build, source: Source, host: type[CLIPStrategy] = Steps, **options: Any
) -> tuple[Any, list[Values], list[Values]]:
    """Train three tasks; return the strategy, and the tuned and merged weights after each."""
    torch.manual_seed(1)
    cls: Any = ENTRIES[name].strategy_class()
    scenario = build_scenario("s", source, tasks=TASKS, order="seed:1")
    strategy = cls.over(host)(
        model=build(), class_names=scenario.class_names, options=cls.options_class(**options),
        recipe=Recipe(epochs=1, batch_size=8, lr=0.02),
    )  # fmt: skip
    tuned, merged = [], []
    for experience in scenario.benchmark.train_stream:
        strategy.train(experience, eval_streams=[])
        tuned.append(copied(strategy.tuned))
        merged.append(copied(strategy.selection))
    return strategy, tuned, merged


def deltas(strategy: Any, tuned: list[Values]) -> tuple[Tensor, Tensor]:
    """Return zero-shot weights (D,) and the tasks' deltas (tasks, D), all tensors in one row."""
    names = list(strategy.zero_shot_point())

    def row(values: Any) -> Tensor:
        return torch.cat([values[name].flatten() for name in names]).double()

    start = row(strategy.zero_shot_point())
    return start, torch.stack([row(values) - start for values in tuned])


def check(strategy: Any, expected: Tensor) -> None:
    """Compare the weights of the model with a row of all tensors."""
    names = list(strategy.zero_shot_point())
    row = torch.cat([strategy.selection[name].detach().flatten() for name in names])
    torch.testing.assert_close(row.double(), expected, rtol=0, atol=1e-6)


def test_wise_ft_is_between_zero_shot_and_tuned(tiny: Build, source: Source) -> None:
    strategy, tuned, _ = learn("wise-ft", tiny, source, alpha=0.25, sweep=(0.75,))
    start, steps = deltas(strategy, tuned)
    check(strategy, start + 0.25 * steps[-1])
    compared = strategy.compared()
    assert list(compared) == ["host", "alpha 0.75"]
    with strategy.model.weights(compared["alpha 0.75"]):
        check(strategy, start + 0.75 * steps[-1])
    with strategy.model.weights(compared["host"]):
        check(strategy, start + steps[-1])


def test_the_running_mean_counts_all_tasks_alike(tiny: Build, source: Source) -> None:
    strategy, tuned, _ = learn("running-mean", tiny, source)
    start, steps = deltas(strategy, tuned)
    check(strategy, start + steps.mean(0))


def test_task_arithmetic_adds_all_deltas(tiny: Build, source: Source) -> None:
    strategy, tuned, _ = learn("task-arithmetic", tiny, source, scale=0.4)
    start, steps = deltas(strategy, tuned)
    check(strategy, start + 0.4 * (steps[0] + steps[1] + steps[2]))


def test_magmax_takes_the_largest_change(tiny: Build, source: Source) -> None:
    strategy, tuned, _ = learn("magmax", tiny, source, scale=0.5)
    start, steps = deltas(strategy, tuned)
    largest = steps.abs().argmax(0)
    assert set(largest.tolist()) == {0, 1, 2}
    check(strategy, start + 0.5 * steps.gather(0, largest[None])[0])


def test_dare_thins_every_delta_once(tiny: Build, source: Source) -> None:
    strategy, tuned, _ = learn("dare", tiny, source, drop=0.75, scale=2.0)
    start, steps = deltas(strategy, tuned)
    thinned = []
    for task, step in enumerate(steps, 1):
        draws = torch.Generator().manual_seed(strategy.seeds.init + task)
        shapes = [value.shape for value in strategy.zero_shot_point().values()]
        kept = torch.cat([torch.rand(s, generator=draws).flatten() for s in shapes]) >= 0.75
        assert kept.double().mean() == pytest.approx(0.25, abs=0.05)
        thinned.append(step * kept * 4)
    check(strategy, start + 2.0 * torch.stack(thinned).mean(0))


def test_ties_trims_elects_and_averages(tiny: Build, source: Source) -> None:
    strategy, tuned, _ = learn("ties", tiny, source, density=0.5, scale=1.5)
    start, steps = deltas(strategy, tuned)
    count, trimmed = round(0.5 * len(start)), torch.zeros_like(steps)
    for row, step in zip(trimmed, steps, strict=True):
        largest = step.abs().topk(count).indices
        row[largest] = step[largest]
    elected = trimmed.sum(0).sign()
    agrees = trimmed.sign() == elected
    mean = (trimmed * agrees).sum(0) / agrees.sum(0).clamp(min=1)
    assert (agrees.sum(0)[elected != 0] < (trimmed != 0).sum(0)[elected != 0]).any()  # in conflict
    check(strategy, start + 1.5 * mean)


def test_fisher_merging_weighs_every_entry(
    tiny: Build, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimates: list[Values] = []
    real = fisher_merge.diagonal_fisher

    def estimate(strategy: Any, images: Tensor, draws: torch.Generator) -> Values:
        assert len(images) == 7
        assert torch.equal(next(iter(strategy.tuned.values())), next(iter(real_values(strategy))))
        estimates.append(real(strategy, images, draws))
        return estimates[-1]

    def real_values(strategy: Any) -> Any:
        return strategy.selection.values()

    monkeypatch.setattr(fisher_merge, "diagonal_fisher", estimate)
    strategy, tuned, _ = learn("fisher-merge", tiny, source, samples=7)
    start, steps = deltas(strategy, tuned)
    names = list(strategy.zero_shot_point())
    rows = [torch.cat([e[name].flatten() for name in names]).double() for e in estimates]
    weights = torch.stack(rows).clamp(min=1e-12)
    mean = (weights * steps).sum(0) / weights.sum(0)
    assert (mean - steps.mean(0)).abs().max() > 1e-3
    check(strategy, start + mean)


def test_regmean_fits_the_outputs_of_every_tasks_norms(tiny: Build, source: Source) -> None:
    strategy, tuned, _ = learn("regmean-ln", tiny, source, off_diagonal=1.0)
    scenario = build_scenario("s", source, tasks=TASKS, order="seed:1")
    inputs = []
    for values, experience in zip(tuned, scenario.benchmark.train_stream, strict=True):
        with strategy.model.weights(values):
            images = torch.stack([data[0] for data in experience.dataset])
            rows = normalised_inputs(strategy.model, images)
        inputs.append({name: torch.from_numpy(x) for name, x in rows.items()})
    assert len(inputs[0]) >= 4
    for name, rows in inputs[0].items():
        for channel in range(rows.shape[1]):
            x = torch.cat([task[name][:, channel] for task in inputs])
            y = torch.cat([
                task[name][:, channel] * values[f"{name}.weight"][channel]
                + values[f"{name}.bias"][channel]
                for task, values in zip(inputs, tuned, strict=True)
            ])  # fmt: skip
            design = torch.stack([x, torch.ones_like(x)], 1)
            expected = torch.linalg.lstsq(design, y[:, None]).solution[:, 0]
            fitted = torch.stack(
                [strategy.selection[f"{name}.{kind}"][channel] for kind in ("weight", "bias")]
            )
            torch.testing.assert_close(fitted.double(), expected, rtol=0, atol=2e-4)
    text = [n for n in strategy.selection if not n.startswith("clip.visual.")]
    for name in text:  # the tasks have equally many images
        mean = torch.stack([values[name] for values in tuned]).mean(0)
        torch.testing.assert_close(strategy.selection[name].detach(), mean)


@pytest.mark.parametrize("start", ["tuned", "merged", "zero-shot"])
@pytest.mark.parametrize("name", MERGING)
def test_a_task_starts_where_it_is_said_to(
    name: str, start: str, tiny: Build, source: Source
) -> None:
    strategy, tuned, merged = learn(name, tiny, source, start=start)
    before = {
        "tuned": tuned, "merged": merged, "zero-shot": [strategy.zero_shot_point()] * TASKS,
    }[start]  # fmt: skip
    assert len(strategy.starts) == TASKS
    for found, expected in zip(strategy.starts[1:], before, strict=False):
        for parameter, value in expected.items():
            assert torch.equal(found[parameter], value), parameter


def test_a_host_that_starts_where_it_was_tuned_trains_as_it_does_alone(
    tiny: Build, source: Source
) -> None:
    _, tuned, _ = learn("wise-ft", tiny, source)
    torch.manual_seed(1)
    scenario = build_scenario("s", source, tasks=TASKS, order="seed:1")
    recipe = Recipe(epochs=1, batch_size=8, lr=0.02)
    alone = ClipFit(model=tiny(), class_names=scenario.class_names, recipe=recipe)
    for experience, values in zip(scenario.benchmark.train_stream, tuned, strict=True):
        alone.train(experience, eval_streams=[])
        for parameter, value in alone.selection.items():
            assert torch.equal(value, values[parameter])


@pytest.mark.parametrize("host", HOSTS)
def test_every_host_is_merged(host: str, tiny: Build, source: Source) -> None:
    strategy, tuned, _ = learn("ties", tiny, source, ENTRIES[host].strategy_class(), density=1.0)
    start, steps = deltas(strategy, tuned)
    elected = steps.sum(0).sign()
    agrees = steps.sign() == elected
    check(strategy, start + (steps * agrees).sum(0) / agrees.sum(0).clamp(min=1))
    assert strategy.score_all(source.test.images).isfinite().all()


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("ties:host=zero-shot", "zero-shot trains nothing that could be merged"),
        ("ties:host=dare", "dare builds on another method itself"),
        ("ties:host=mg-clip", "classifies by a head that is not among the weights it trains"),
        ("ties:hosst=coop", "neither ties nor its host has an option 'hosst'. Did you mean 'host'"),
        ("wise-ft:sweep=[2]", "less than or equal to 1"),
        ("fisher-merge --online 7", "trains on a task's images again"),
    ],
)
def test_what_cannot_be_merged_is_refused(
    label: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, "--strategy", *label.split()]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
