"""How long a run will take, from a few timed images and prompts."""

import time
from collections.abc import Callable, Mapping

import torch

from cl_clipfit.data.source import Source
from cl_clipfit.data.streams import Scenario
from cl_clipfit.optimization import steps_per_epoch
from cl_clipfit.runplan import RunPlan
from cl_clipfit.strategy import CLIPStrategy

_TIMED_IMAGES = 32
_TIMED_PROMPTS = 8


@torch.no_grad()
def estimate_seconds(
    plan: RunPlan, scenario: Scenario, strategy: CLIPStrategy, probes: Mapping[str, Source]
) -> float:
    """Estimate the run's length; a training step costs 3 forward passes.

    Where all classes seen are encoded their prompts grow from task to task, so that half of them
    count for a step on average.

    Args:
        plan: the run.
        scenario: the stream.
        strategy: the method, on its device.
        probes: what is scored besides, after every task.
    """
    model, recipe = strategy.model, plan.recipe
    images = scenario.test.images[:_TIMED_IMAGES].to(strategy.device)
    classes = list(range(min(_TIMED_PROMPTS, len(scenario.class_names))))
    per_image = _seconds(lambda: model.image_features(images)) / len(images)
    per_class = _seconds(lambda: model.text_features(classes)) / len(classes)
    tasks, work = scenario.trained_tasks, strategy.workload()
    passes = 1 if strategy.frozen else 1 + tasks * work.test_passes
    tested = len(scenario.test) + sum(len(source.test) for source in probes.values())
    total = passes * (per_image * tested + per_class * len(scenario.class_names))
    total += tasks * per_image * work.sampled_images
    if recipe is None:
        return total
    steps = work.passes * sum(steps_per_epoch(recipe, n) for n in scenario.train_samples)
    trained = work.passes * sum(scenario.train_samples)
    prompts = len(scenario.class_names) / 2
    return total + 3 * (per_image * trained + per_class * steps * prompts)


def _seconds(function: Callable[[], torch.Tensor]) -> float:
    """Time the quicker of two calls: the first pays for set-up, either may be disturbed."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        function().cpu()  # the copy waits for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds)
