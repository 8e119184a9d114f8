"""What holds for every registered strategy: a new file in strategies/ is tested by existing."""

from collections.abc import Callable

import pytest
import torch

from cl_clipfit import CLIPClassifier, CLIPStrategy, Recipe, Scenario, Source, build_scenario
from cl_clipfit.registry import Registry
from cl_clipfit.training.snapshot import put, take

REGISTRY = Registry()
STRATEGIES = [entry.name for entry in REGISTRY.entries("strategies")]

Build = Callable[..., CLIPClassifier]


def make(name: str, model: CLIPClassifier, scenario: Scenario) -> CLIPStrategy:
    """Return a strategy with its default options, over its default base."""
    entry, cls = REGISTRY.get("strategies", name), REGISTRY.trained_class(name)
    return cls(
        model=model,
        class_names=scenario.class_names,
        recipe=Recipe(epochs=2, batch_size=8, lr=0.01),
        options=entry.options_class()(),
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_resumed_from_its_state_ends_bit_for_bit_as_one_never_stopped(
    name: str, tiny: Build, source: Source
) -> None:
    torch.manual_seed(1)
    scenario = build_scenario("s", source, tasks=3, order="seed:1")
    whole = make(name, tiny(), scenario)
    first, second, third = scenario.benchmark.train_stream
    whole.train(first, eval_streams=[])
    whole.train(second, eval_streams=[])
    saved = take(whole)
    assert bool(saved["lost"]) != whole.resumes
    if not whole.resumes:
        return
    whole.train(third, eval_streams=[])
    images = scenario.test.images

    resumed = make(name, tiny(), scenario)
    if resumed.learning == "gradient":
        resumed.select()
    put(resumed, saved)
    resumed.train(third, eval_streams=[])
    assert torch.equal(resumed.score_all(images), whole.score_all(images))
    assert take(resumed)["state"].keys() == take(whole)["state"].keys()
