"""What holds for every registered strategy: a new file in strategies/ is tested by existing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cl_clipfit import CLIPClassifier, CLIPStrategy, Recipe, Scenario, Source, build_scenario
from cl_clipfit.registry import Registry
from cl_clipfit.training.loop import StepCallback
from cl_clipfit.training.snapshot import put, take

REGISTRY = Registry([Path("examples/image_norms.py")])
STRATEGIES = [entry.name for entry in REGISTRY.entries("strategies")]

Build = Callable[..., CLIPClassifier]


def make(name: str, model: CLIPClassifier, scenario: Scenario) -> CLIPStrategy:
    """Return a strategy with its default options, over its default base."""
    entry, cls = REGISTRY.get("strategies", name), REGISTRY.trained_class(name)
    return cls(
        plugins=[StepCallback(check_terms)],
        model=model,
        class_names=scenario.class_names,
        recipe=Recipe(epochs=1, batch_size=8),
        options=entry.options_class()(),
    )


def check_terms(strategy: CLIPStrategy) -> None:
    """Check that the terms that a method names add up to its loss."""
    terms = strategy.read_terms()
    assert sum(terms.values()) == pytest.approx(2 * terms["loss"], rel=1e-4, abs=1e-5), terms


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_moves_its_selection_alone_and_ends_the_same_twice_and_resumed(
    name: str, tiny: Build, source: Source
) -> None:
    """The second time, it is another object that learns the last task, from what was saved."""
    scenario = build_scenario("s", source, tasks=3, order="seed:1")
    images, stream = scenario.test.images, scenario.benchmark.train_stream
    torch.manual_seed(1)
    whole = make(name, tiny(), scenario)
    for experience in stream:
        whole.train(experience, eval_streams=[])
    scores = whole.score_all(images)
    assert scores.shape == (48, 6)
    assert torch.isfinite(scores).all()
    pristine, start = dict(tiny().named_parameters()), whole.model.pretrained_values
    for parameter_name, value in whole.model.named_parameters():
        # `start`: of parameters that the method added
        same = torch.equal(value, pristine.get(parameter_name, start.get(parameter_name)))
        assert same != (parameter_name in whole.selection), parameter_name

    torch.manual_seed(1)
    again = make(name, tiny(), scenario)
    for experience in stream[:2]:
        again.train(experience, eval_streams=[])
    saved = take(again)
    assert bool(saved["lost"]) != again.resumes
    if again.resumes:
        again = make(name, tiny(), scenario)
        if again.learning == "gradient":
            again.select()
        put(again, saved)
    again.train(stream[2], eval_streams=[])
    assert torch.equal(again.score_all(images), scores)
    assert take(again)["state"].keys() == take(whole)["state"].keys()
