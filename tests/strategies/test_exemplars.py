"""No method uses images of old tasks, or their features, unless it declares that it does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_clipfit import CLIPClassifier, CLIPStrategy, Recipe, Source, build_scenario
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.registry import Registry
from tests.support.exemplars import OldImages
from tests.support.methods import TwoGroups

Build = Callable[..., CLIPClassifier]
REGISTRY = Registry([Path("examples/image_norms.py")])
STRATEGIES = [entry.name for entry in REGISTRY.entries("strategies")]


def plan_of(name: str) -> RunPlan:
    """Return the plan of a strategy with its defaults, over its default base."""
    entry = REGISTRY.get("strategies", name)
    cls, options = entry.strategy_class(), entry.options_class()()
    plan = RunPlan(name, entry, cls, options, None)
    base = getattr(options, cls.base_option or "", "none")
    if base == "none":
        return plan
    below = plan_of(base)
    return replace(plan, cls=cls.over(below.cls), base=below)


def used(cls: Callable[..., CLIPStrategy], build: Build, source: Source) -> dict[str, set[int]]:
    """Return which images of task 1, and whose features, a method uses in task 2."""
    torch.manual_seed(1)
    scenario = build_scenario("s", source, tasks=2)
    # So small a rate that trained copies of features stay where they are.
    recipe = Recipe(epochs=2, batch_size=8, lr=1e-9)
    strategy = cls(model=build(), class_names=scenario.class_names, recipe=recipe)
    first, second = scenario.benchmark.train_stream
    strategy.train(first, eval_streams=[])
    old = OldImages(torch.stack([data[0] for data in first.dataset]), build())
    with old.watched():
        strategy.train(second, eval_streams=[])
    found = old.kept(strategy)
    return {**found, "images": found["images"] | old.encoded}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_method_uses_no_exemplars_but_those_it_declares(
    name: str, tiny: Build, source: Source
) -> None:
    plan = plan_of(name)
    found = used(plan.cls, tiny, source)
    declared = plan.exemplars
    assert declared in ("no", "features", "all") or isinstance(declared, int)
    most = len(source.train) if declared == "all" else declared
    assert len(found["images"]) <= (most if isinstance(most, int) else 0)
    # Whoever keeps images may keep features; whoever declares features has some.
    if declared in ("no", "features"):
        assert bool(found["features"]) == (declared == "features")


def test_the_value_of_an_option_may_decide_what_is_used(tiny: Build, source: Source) -> None:
    plan = plan_of("rail")
    dual = replace(plan, options=type(plan.options)(form="dual"))
    assert (plan.exemplars, dual.exemplars) == ("no", "features")
    found = used(lambda **given: plan.cls(options=dual.options, **given), tiny, source)
    assert found["features"] and not found["images"]


class KeepsImages(TwoGroups):
    """Keeps the images of a task, and trains on them in the next."""

    def training_logits(self, images: Tensor) -> Tensor:
        logits = super().training_logits(images)
        if getattr(self, "buffer", None) is not None:
            self.model.image_features(self.buffer[:2])
        return logits

    def after_task(self) -> None:
        self.buffer = self.task_sample(5)[0]


class KeepsTheTask(TwoGroups):
    """Keeps the experience, and reads its images in the next task."""

    def before_task(self) -> None:
        if self.tasks_seen:
            images, _ = self.task_sample(3, self.previous)
            self.model.image_features(images)
        self.previous = self.experience


class KeepsFeatures(TwoGroups):
    """Keeps the features of some images, in an attribute of its own type."""

    class Memory:
        """Holds rows."""

        def __init__(self, rows: Tensor) -> None:
            self.rows = rows

    def after_task(self) -> None:
        if self.tasks_seen == 1:
            with torch.no_grad(), self.model.pretrained_weights():
                self.memory = self.Memory(self.model.image_features(self.task_sample(4)[0]))


@pytest.mark.parametrize(
    ("cls", "images", "features"),
    [(KeepsImages, 2, 0), (KeepsTheTask, 3, 0), (KeepsFeatures, 0, 4), (TwoGroups, 0, 0)],
)
def test_what_is_kept_in_secret_is_found(
    cls: Any, images: int, features: int, tiny: Build, source: Source
) -> None:
    found = used(cls, tiny, source)
    assert (len(found["images"]), len(found["features"])) == (images, features)


def test_the_number_of_images_is_that_of_the_option_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from cl_clipfit import CLIPStrategy, Options\nEXEMPLARS = 'memory'\n"
        "class MineOptions(Options):\n    memory: int = 30\n"
        "class Mine(CLIPStrategy):\n    options_class = MineOptions\n"
    )
    entry = Registry([file]).get("strategies", "mine")
    cls, options = entry.strategy_class(), entry.options_class()
    assert RunPlan("mine", entry, cls, options(), None).exemplars == 30
    assert RunPlan("mine", entry, cls, options(memory=0), None).exemplars == "no"
    full = plan_of("full")
    over = replace(full, base=RunPlan("mine", entry, cls, options(memory=7), None))
    assert (full.exemplars, over.exemplars) == ("no", 7)
