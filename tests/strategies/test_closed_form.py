"""Strategies in closed form over streams: the head of all data at once, whatever the order."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cl_clipfit.clip import CLIPClassifier
from cl_clipfit.data.source import Source
from cl_clipfit.data.streams import build_scenario
from cl_clipfit.methods.closed_form import ClosedFormStrategy, RandomRidgeStrategy
from cl_clipfit.registry import Registry

Build = Callable[..., CLIPClassifier]
REGISTRY = Registry()
CLASSES = {e.name: e.strategy_class() for e in REGISTRY.entries("strategies")}
CLOSED = {name: cls for name, cls in CLASSES.items() if issubclass(cls, ClosedFormStrategy)}

GATED = ("rail",)  # zero-shot CLIP answers for classes not seen


def learn(name: str, build: Build, source: Source, tasks: int = 3, **cut: Any) -> Any:
    """Return a strategy and the scenario whose first `tasks` tasks it has learned."""
    scenario = build_scenario("s", source, tasks=3, order="seed:1", **cut)
    strategy = CLOSED[name](model=build(), class_names=scenario.class_names)
    for experience, task in zip(
        scenario.benchmark.train_stream, scenario.experience_tasks, strict=True
    ):
        if task < tasks:
            strategy.train(experience, eval_streams=[])
    return strategy, scenario


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize(
    "cut", [{}, {"online": 5}, {"blurry": 0.3}], ids=["tasks", "online", "blurry"]
)
def test_a_stream_ends_as_all_images_at_once(
    name: str, cut: dict[str, Any], tiny: Build, source: Source
) -> None:
    strategy, scenario = learn(name, tiny, source, **cut)
    scores = strategy.score_all(scenario.test.images)
    assert scores.isfinite().all()
    at_once = CLOSED[name](model=tiny(), class_names=scenario.class_names)
    at_once.train(build_scenario("s", source, tasks=1, order="seed:1").benchmark.train_stream[0])
    if isinstance(at_once, RandomRidgeStrategy):  # chosen on other images
        at_once.errors = strategy.errors
        at_once.head = at_once.fit()
    expected = at_once.score_all(scenario.test.images)
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", CLOSED)
def test_only_classes_seen_are_chosen_and_before_them_it_is_zero_shot(
    name: str, tiny: Build, source: Source
) -> None:
    strategy, scenario = learn(name, tiny, source, tasks=0)
    images = scenario.test.images
    zero_shot = tiny()
    zero_shot.add_classes(scenario.class_names)
    with torch.no_grad():
        torch.testing.assert_close(strategy.score_all(images), zero_shot(images))
    strategy, scenario = learn(name, tiny, source, tasks=1)
    seen = scenario.task_classes[0]
    unseen = [label for label in range(6) if label not in seen]
    scores = strategy.score_all(images)
    assert scores[:, seen].isfinite().all()
    if name in GATED:
        with torch.no_grad():
            torch.testing.assert_close(scores[:, unseen], zero_shot(images)[:, unseen])
    else:
        assert (scores[:, unseen] == -math.inf).all()


@pytest.mark.parametrize("name", CLOSED)
def test_the_state_restores_every_score(name: str, tiny: Build, source: Source) -> None:
    strategy, scenario = learn(name, tiny, source, tasks=2)
    other, _ = learn(name, tiny, source, tasks=0)
    other.load_state_dict({})
    assert other.head is None
    other.load_state_dict(strategy.state_dict())
    images = scenario.test.images
    assert torch.equal(other.score_all(images), strategy.score_all(images))


def test_the_weight_of_the_gaussian_scores_counts(tiny: Build, source: Source) -> None:
    strategy, scenario = learn("gda-clip", tiny, source)
    images = scenario.test.images
    both = strategy.score_all(images)
    strategy.options = type(strategy.options)(weight=0)
    text = strategy.score_all(images)
    with torch.no_grad():
        torch.testing.assert_close(text, strategy.model(images))
        gaussian = strategy.head(strategy.model.image_features(images)).float()
    torch.testing.assert_close(both, text + gaussian)
