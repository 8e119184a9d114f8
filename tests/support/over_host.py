"""Strategies over a host, and a recipe whose numbers are easy to follow."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from cl_clipfit import CLIPClassifier, CLIPStrategy, Recipe, Scenario
from cl_clipfit.registry import Registry

Build = Callable[..., CLIPClassifier]
REGISTRY = Registry()
SGD = Recipe(epochs=2, batch_size=6, lr=0.01, optimizer="sgd", schedule="constant")


def made(name: str, build: Build, stream: Scenario, host: str = "full", **options: Any) -> Any:
    """Return a strategy over a host."""
    entry, below = REGISTRY.get("strategies", name), REGISTRY.get("strategies", host)
    cls = entry.strategy_class().over(below.strategy_class())
    return cls(
        model=build(), class_names=stream.class_names, recipe=SGD,
        options=entry.options_class()(host=host, **options),
    )  # fmt: skip


def trained(strategy: CLIPStrategy, stream: Scenario) -> list[Tensor]:
    """Train on a stream, images in order; return the weights."""
    strategy.train(stream.benchmark.train_stream, eval_streams=[], shuffle=False)
    return [p.detach() for p in strategy.model.parameters()]
