"""LwF: equal to Avalanche's plug-in, and to plain PyTorch where the cross-entropy is the task's."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.benchmarks import nc_benchmark
from avalanche.training.plugins import LwFPlugin
from torch import Tensor

from cl_clipfit import CLIPClassifier, Recipe, Source, build_scenario
from cl_clipfit.data.streams import as_avalanche
from cl_clipfit.registry import Registry
from cl_clipfit.strategies.lwf import LwF, LwFOptions

Build = Callable[..., CLIPClassifier]
HOST: Any = Registry().strategy_class("ln-tune")
SEEN = HOST.options_class(ce_scope="seen")
RECIPE = Recipe(epochs=3, batch_size=8, lr=0.1, schedule="constant")


def make(cls: Any, build: Build, source: Source, **settings: Any) -> Any:
    torch.manual_seed(0)
    return cls(model=build(), class_names=source.class_names, recipe=RECIPE, **settings)


def test_it_equals_the_plug_in_of_avalanche(tiny: Build, source: Source) -> None:
    ours = make(
        LwF.over(HOST), tiny, source, host_options=SEEN,
        options=LwFOptions(distil=20.0, temperature=1.5),
    )  # fmt: skip
    plugin: Any = LwFPlugin(alpha=20.0, temperature=1.5)
    stock = make(HOST, tiny, source, options=SEEN, plugins=[plugin])
    alone = make(HOST, tiny, source, options=SEEN)
    data = as_avalanche(source.train)  # nc_benchmark adds the task labels that the plug-in reads
    tasks = nc_benchmark(data, data, n_experiences=3, task_labels=False, shuffle=False)
    for task in tasks.train_stream:
        for strategy in (ours, stock, alone):
            torch.manual_seed(1)
            strategy.train(task, eval_streams=[])
    for name, value in ours.selection.items():
        torch.testing.assert_close(value, stock.selection[name], rtol=1e-3, atol=1e-3)
    moved = [(v - alone.selection[n]).abs().max() for n, v in ours.selection.items()]
    assert max(moved) > 0.03, moved


def test_old_classes_are_distilled_that_the_cross_entropy_does_not_rank(
    tiny: Build, source: Source
) -> None:
    model, losses = tiny(), []
    before: dict[str, Tensor] = {}

    def predicted(strategy: Any, values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, values, (strategy.mb_x,)).detach()

    class Watched(LwF.over(HOST)):  # type: ignore[misc]
        def add_gradients(self) -> None:
            if not before:
                return
            now, old = predicted(self, self.current_values()), predicted(self, before)
            teacher, student = ((x[:, :2] / 2).softmax(1) for x in (old, now))
            kept = 20 * (teacher * (teacher / student).log()).sum(1).mean()
            expected = F.cross_entropy(now[:, 2:4], self.mb_y - 2) + kept
            losses.append((self.loss.detach(), expected, kept))

    strategy = make(Watched, tiny, source, options=LwFOptions(distil=20.0))
    model.add_classes(list(source.class_names), strategy.templates)
    first, second = build_scenario("s", source, tasks=3).benchmark.train_stream[:2]
    strategy.train(first, eval_streams=[])
    before |= strategy.current_values()
    strategy.train(second, eval_streams=[])
    assert len(losses) == 6
    for loss, expected, _ in losses:
        torch.testing.assert_close(loss.squeeze(), expected, rtol=1e-4, atol=1e-5)
    assert losses[0][2] < 1e-5 < 1e-3 < max(kept for *_, kept in losses)
