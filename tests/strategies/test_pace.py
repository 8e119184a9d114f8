"""PACE: loss, gradient and steps are those of plain PyTorch with one graph through both draws."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_clipfit import CLIPClassifier, CLIPStrategy, Recipe, Source, build_scenario
from cl_clipfit.registry import Registry
from cl_clipfit.strategies.pace import Pace, PaceOptions

Build = Callable[..., CLIPClassifier]
HOSTS: dict[str, Any] = {
    n: Registry().strategy_class(n) for n in ("ln-tune", "bitfit", "full", "lora", "coop")
}


def make(cls: Any, build: Build, source: Source, **settings: Any) -> Any:
    torch.manual_seed(0)  # the seed of the noise
    recipe = Recipe(epochs=5, batch_size=100, lr=0.01, optimizer="sgd", schedule="constant")
    return cls(model=build(), class_names=source.class_names, recipe=recipe, **settings)


@pytest.mark.parametrize("host", ["ln-tune", "bitfit"])
def test_steps_are_those_of_plain_pytorch(host: str, tiny: Build, source: Source) -> None:
    options = PaceOptions(sigma=0.7, consistency=30.0)
    strategy = make(Pace.over(HOSTS[host]), tiny, source, options=options)
    draws = torch.Generator()
    draws.set_state(strategy.noise_draws.get_state())
    task = build_scenario("s", source, tasks=3).benchmark.train_stream[0]
    strategy.train(task, eval_streams=[])
    model = tiny()
    model.add_classes(list(source.class_names), strategy.templates)
    names = list(strategy.selection)
    start = {n: model.get_parameter(n).detach().clone() for n in names}
    values = {n: nn.Parameter(start[n].clone()) for n in names}
    optimizer = torch.optim.SGD(values.values(), 0.01, momentum=0.9)
    images = torch.stack([row[0] for row in task.dataset])
    labels, scale = torch.tensor(list(task.dataset.targets)), model.logit_scale.detach()

    def noisy() -> Tensor:
        changed = {}
        for n in names:
            z = 1 + 0.7 * torch.randn(values[n].shape, generator=draws)
            changed[n] = start[n] + z * (values[n] - start[n])
        return torch.func.functional_call(model, changed, (images, [0, 1]))

    penalties = []
    for _ in range(5):
        one, two = noisy(), noisy()
        penalty = ((one / scale - two / scale) ** 2).sum(1).mean()
        penalties.append(float(penalty.detach()))
        optimizer.zero_grad()
        (F.cross_entropy(one, labels) + 30.0 * penalty).backward()
        optimizer.step()
    assert penalties[0] == 0 < 1e-5 < penalties[-1]
    for n in names:
        trained = strategy.selection[n].detach()
        torch.testing.assert_close(trained, values[n].detach(), rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("host", HOSTS)
def test_without_noise_it_is_the_host(host: str, tiny: Build, source: Source) -> None:
    task = build_scenario("s", source, tasks=3).benchmark.train_stream[0]
    alone = make(HOSTS[host], tiny, source)
    quiet = make(Pace.over(HOSTS[host]), tiny, source, options=PaceOptions(sigma=0.0))
    noisy = make(Pace.over(HOSTS[host]), tiny, source, options=PaceOptions(sigma=0.5))
    for strategy in (alone, quiet, noisy):
        torch.manual_seed(1)
        strategy.train(task, eval_streams=[])
    differs = False
    for name, value in alone.selection.items():
        torch.testing.assert_close(quiet.selection[name], value, rtol=1e-4, atol=1e-5)
        differs |= not torch.allclose(noisy.selection[name], value, rtol=1e-4, atol=1e-5)
    assert differs or host == "lora"


def test_weights_are_put_back_after_a_failed_pass(tiny: Build, source: Source) -> None:
    class Fails(HOSTS["ln-tune"]):  # type: ignore[misc]
        def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
            if self.task_steps == 3:
                self.at_failure = {n: p.detach().clone() for n, p in self.selection.items()}
                raise ValueError("in the middle of a step")
            return super().compute_loss(logits, labels)

        def update_weights(self) -> None:
            super().update_weights()
            self.last = {n: p.detach().clone() for n, p in self.selection.items()}

    task = build_scenario("s", source, tasks=3).benchmark.train_stream[0]
    strategy = make(Pace.over(Fails), tiny, source)
    with pytest.raises(ValueError, match="in the middle"):
        strategy.train(task, eval_streams=[])
    assert all(torch.equal(p, strategy.last[n]) for n, p in strategy.selection.items())
    assert not all(torch.equal(p, strategy.at_failure[n]) for n, p in strategy.selection.items())


def test_hosts_that_take_no_steps_are_refused() -> None:
    lda: type[CLIPStrategy] = Registry().strategy_class("lda")
    assert Pace.refuses(lda) == "trains nothing that could be trained with noise"
    assert not Pace.refuses(HOSTS["full"])
