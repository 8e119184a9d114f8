"""The predicted size of a closed-form head is that of the head that a method has learned."""

from collections.abc import Callable

import pytest
import torch

from cl_clipfit import CLIPClassifier, CLIPStrategy, Recipe, Source, build_scenario
from cl_clipfit.registry import Registry

REGISTRY = Registry([])
HEADS = [
    entry.name
    for entry in REGISTRY.entries("strategies")
    if entry.strategy_class().head_state is not CLIPStrategy.head_state
]


def test_every_method_with_a_head_says_how_large_it_is() -> None:
    assert {"lda", "ranpac", "rail", "stack", "tip-adapter", "mg-clip"} <= {*HEADS}
    for name in HEADS:
        cls = REGISTRY.trained_class(name)
        assert cls.head_bytes is not CLIPStrategy.head_bytes, name


@pytest.mark.parametrize("name", [*HEADS, "rail:dual"])
def test_a_head_is_as_large_as_its_method_says(
    name: str, tiny: Callable[..., CLIPClassifier], source: Source
) -> None:
    name, _, form = name.partition(":")
    scenario = build_scenario("s", source, tasks=3)
    options = REGISTRY.get("strategies", name).options_class()
    given = {"width": 30} if "width" in options.model_fields else {}
    given |= {"form": form} if form else {}
    torch.manual_seed(0)
    strategy = REGISTRY.trained_class(name)(
        model=tiny(), class_names=scenario.class_names, recipe=Recipe(epochs=1, batch_size=8),
        options=options(**given),
    )  # fmt: skip
    images = classes = 0
    for task, experience in enumerate(scenario.benchmark.train_stream):
        strategy.train(experience, eval_streams=[])
        images += scenario.train_samples[task]
        classes += len(scenario.task_classes[task])
        kept = sum(t.numel() * t.element_size() for t in strategy.head_state().values())
        assert strategy.head_bytes(images, classes) == pytest.approx(kept, rel=0.1)
