"""Estimate the duration of a run from a few timed images and prompts."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from cl_clipfit.data.source import Source
from cl_clipfit.data.streams import Scenario
from cl_clipfit.evaluation.feature_reuse import leaves_images
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.runtime.out_of_memory import fits, release
from cl_clipfit.training.optimization import steps_per_epoch
from cl_clipfit.training.strategy import CLIPStrategy

_TIMED_IMAGES = 32
_TIMED_PROMPTS = 8


@torch.no_grad()
def estimate_seconds(
    plan: RunPlan,
    scenario: Scenario,
    strategy: CLIPStrategy,
    probes: Mapping[str, Source],
    statistics: int = 0,
    at_hand: bool = False,
) -> float | None:
    """Estimate the duration of a run; a training step costs 3 forward passes of a trained tower.

    If all classes seen are encoded, their number grows from task to task; on average, a step
    encodes half of all classes.

    Args:
        plan: the run.
        scenario: the stream.
        strategy: the method, on its device.
        probes: data sets that are also scored after every task.
        statistics: maximum number of training images per task that are encoded with the pretrained
            weights.
        at_hand: whether the features of test images and probes before training exist already.

    Returns:
        seconds; None if memory runs out with one image or one prompt.
    """
    recipe = plan.recipe
    test, train = (_per_image(strategy, data.images) for data in (scenario.test, scenario.train))
    prompt = _per_prompt(strategy)
    if test is None or train is None or prompt is None:
        return None
    tasks, work = scenario.trained_tasks, strategy.workload()
    # An empty selection means that nothing has been selected yet.
    fixed = bool(strategy.selection) and leaves_images(strategy, strategy.selection)
    rows = 1 if strategy.learning == "none" else 1 + tasks * work.test_passes
    tested = len(scenario.test) + sum(len(source.test) for source in probes.values())
    total = (1 if fixed else rows) * test * tested - at_hand * test * tested
    total += rows * prompt * len(scenario.class_names) * strategy.compares_text
    if recipe is None:
        return total
    total += tasks * train * work.sampled_images
    total += train * sum(min(statistics, n) for n in scenario.train_samples[:tasks])
    steps = work.passes * sum(steps_per_epoch(recipe, n) for n in scenario.train_samples)
    trained = work.passes * sum(scenario.train_samples)
    prompts = strategy.compares_text * len(scenario.class_names) / 2
    return total + (1 if fixed else 3) * train * trained + 3 * prompt * steps * prompts


def _per_image(strategy: CLIPStrategy, images: Any) -> float | None:
    """Return the seconds per image, for encoding it or for reading its features."""

    def timed(count: int) -> float:
        batch = images[:count].to(strategy.device)
        return _seconds(lambda: strategy.model.image_features(batch))

    return _per_piece(timed, min(_TIMED_IMAGES, len(images)))


def _per_prompt(strategy: CLIPStrategy) -> float | None:
    """Return the seconds per class prompt."""
    model = strategy.model
    return _per_piece(
        lambda count: _seconds(lambda: model.text_features(list(range(count)))),
        min(_TIMED_PROMPTS, len(model.class_names)),
    )


def _per_piece(timed: Callable[[int], float], count: int) -> float | None:
    """Return the seconds per piece, timed on `count` pieces or on fewer if memory runs out.

    Args:
        timed: returns the seconds for a batch of this many pieces.
        count: pieces of the first batch.

    Returns:
        seconds; None if there is not enough memory for one piece.
    """
    seconds: list[float] = []

    def work(pieces: int) -> None:
        seconds.append(timed(pieces) / pieces)

    while count and not fits(partial(work, count)):
        count //= 2
        release()
    return seconds[0] if count else None


def _seconds(function: Callable[[], torch.Tensor]) -> float:
    """Return the time of the faster of two calls: the first includes set-up."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        function().cpu()  # the copy waits for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds)
