"""EWC: equal to Avalanche's plug-in whose Fisher sees one image at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from avalanche.training.plugins import EWCPlugin

from cl_clipfit import CLIPClassifier, Recipe, Source, build_scenario
from cl_clipfit.registry import Registry
from cl_clipfit.strategies.ewc import EWC, EWCOptions

Build = Callable[..., CLIPClassifier]


class AllClasses(Registry().strategy_class("ln-tune")):  # type: ignore[misc]
    """Ranks every class, as the plug-in's Fisher does."""

    def label_space(self) -> Sequence[int]:
        return range(6)


class OneByOne(EWCPlugin):
    """The stock plug-in, with batches of one image for its Fisher alone."""

    def compute_importances(self, model: Any, criterion: Any, *args: Any, **kwargs: Any) -> Any:
        return super().compute_importances(model, criterion, *args[:3], 1)


def make(cls: Any, build: Build, source: Source, **settings: Any) -> Any:
    torch.manual_seed(0)
    recipe = Recipe(epochs=4, batch_size=8, lr=0.02, optimizer="sgd", schedule="constant")
    return cls(model=build(), class_names=source.class_names, recipe=recipe, **settings)


def test_it_equals_the_plug_in_of_avalanche(tiny: Build, source: Source) -> None:
    options = EWCOptions(hold=40.0, decay=0.5, labels="given")
    ours = make(EWC.over(AllClasses), tiny, source, options=options)
    plugin: Any = OneByOne(ewc_lambda=20.0, mode="online", decay_factor=0.5)
    stock = make(AllClasses, tiny, source, plugins=[plugin])
    alone = make(AllClasses, tiny, source)
    for task in build_scenario("s", source, tasks=3, limit=4).benchmark.train_stream[:2]:
        for strategy in (ours, stock, alone):
            torch.manual_seed(1)
            strategy.train(task, eval_streams=[])
    for name, value in ours.selection.items():
        torch.testing.assert_close(value, stock.selection[name], rtol=1e-3, atol=1e-5)
        fisher = plugin.importances[1][name].data
        torch.testing.assert_close(ours.importance[name], fisher, rtol=1e-2, atol=1e-6)
    moved = [(v - alone.selection[n]).abs().max() for n, v in ours.selection.items()]
    assert max(moved) > 1e-2
