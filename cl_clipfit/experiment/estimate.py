"""Estimate the duration of a run from a few timed images and prompts."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from cl_clipfit.config.options import Recipe
from cl_clipfit.data.images.lazy import LazyImages
from cl_clipfit.data.source import Source
from cl_clipfit.data.streams import Scenario
from cl_clipfit.evaluation.feature_reuse import leaves_images
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.runtime.out_of_memory import fits, release
from cl_clipfit.training.features import tasks_in_reach
from cl_clipfit.training.optimization import steps_per_epoch
from cl_clipfit.training.strategy import CLIPStrategy

_TIMED_IMAGES = 32
_TIMED_PROMPTS = 32
PASSES = 3  # forward passes that a training step of a tower costs
GROUNDS = f"{_TIMED_IMAGES} images and {_TIMED_PROMPTS} prompts"
_BYTES_PER_SECOND = 3e8  # of a checkpoint: copied, packed, hashed and synced


@torch.no_grad()
def estimate_seconds(
    plan: RunPlan,
    scenario: Scenario,
    strategy: CLIPStrategy,
    probes: Mapping[str, Source],
    statistics: int = 0,
    at_hand: bool = False,
) -> float | None:
    """Estimate the duration of a run.

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
    test, prompt = _per_image(strategy, scenario.test.images), _per_prompt(strategy)
    # An empty selection means that nothing has been selected yet.
    fixed = bool(strategy.selection) and leaves_images(strategy, strategy.selection)
    if test is None or prompt is None:
        return None
    tasks, work = scenario.trained_tasks, strategy.workload()
    rows = 1 if strategy.learning == "none" else 1 + tasks * work.test_passes
    tested = [scenario.test, *(source.test for source in probes.values())]
    encode = sum(test * len(data) + _decoding(data.images) for data in tested)
    total = ((1 if fixed else rows) - at_hand) * encode
    templates = _templates(scenario)
    names = sum(len(s.class_names) * _templates(s) / templates for s in probes.values())
    total += rows * prompt * (len(scenario.class_names) * strategy.compares_text + names)
    if plan.recipe is None:
        return total
    train = _per_image(strategy, scenario.train.images)
    if train is None:
        return None
    return total + _training(plan.recipe, scenario, strategy, train, prompt, statistics, fixed)


@torch.no_grad()
def encoding_seconds(strategy: CLIPStrategy, images: Any) -> float | None:
    """Estimate how long all images take to encode once by the pretrained tower.

    Args:
        strategy: any, on its device, before it has trained.
        images: uint8 (N, 3, H, W) or a stand-in; or features (N, d), which take no time.

    Returns:
        seconds; None if memory runs out with one image.
    """
    if images.dim() == 2 or not len(images):
        return 0.0
    one = _per_image(strategy, images)
    return None if one is None else one * len(images) + _decoding(images)


def _training(
    recipe: Recipe, scenario: Scenario, strategy: CLIPStrategy, image: float, prompt: float,
    statistics: int, fixed: bool,
) -> float:  # fmt: skip
    """Return the seconds of training, from those to encode an image and a prompt.

    A step costs `PASSES` forward passes of a trained tower, and one more if activations are
    recomputed.
    """
    work, counts = strategy.workload(), scenario.train_samples[: scenario.trained_tasks]
    factor = PASSES + (strategy.model.recompute or strategy.model.micro_batch is not None)
    samples = (*work.sampled, (1, statistics))
    sampled = sum(passes * min(most, n) for passes, most in samples for n in counts)
    spans = [tasks_in_reach(strategy.reach, task, len(counts)) for task in range(len(counts))]
    trained = [sum(counts[at] for at in span) for span in spans[: work.tasks]]
    ranked = _prompts_per_step(strategy, scenario)[: work.tasks]
    prompts = sum(steps_per_epoch(recipe, n) * p for n, p in zip(trained, ranked, strict=True))
    # Worker processes decode the images of an epoch while the model trains on others.
    epoch = (1 if fixed else factor) * image * sum(trained)
    decoding = _decoding(scenario.train.images) * sum(trained) / sum(counts)
    waits = max(0.0, decoding - epoch) * work.epochs
    # In every epoch a checkpoint: values, and at most two states of the optimiser.
    values = sum(p.numel() for p in strategy.selection.values())
    writes = len(trained) * values * 4 * (3 * work.epochs + 2) / _BYTES_PER_SECOND
    compute = image * sampled + epoch * work.passes + factor * prompt * prompts * work.passes
    return compute + waits + writes


def _prompts_per_step(strategy: CLIPStrategy, scenario: Scenario) -> list[int]:
    """Return the number of classes whose prompts a step encodes, for each trained task."""
    if not strategy.compares_text:
        return [0] * scenario.trained_tasks
    before = strategy.task_classes, strategy.seen_classes
    ranks_all = type(strategy).text_space is not CLIPStrategy.text_space
    counts, seen = [], dict[int, None]()
    for task in range(scenario.trained_tasks):
        span = tasks_in_reach(strategy.reach, task, scenario.trained_tasks)
        classes = sorted({label for at in span for label in scenario.brought[at]})
        seen.update(dict.fromkeys(classes))
        strategy.task_classes, strategy.seen_classes = classes, list(seen)
        counts.append(len(seen) if ranks_all else len(strategy.label_space()))
    strategy.task_classes, strategy.seen_classes = before
    return counts


def _templates(data: Scenario | Source) -> int:
    """Return the number of prompts per class."""
    first = data.templates[0]
    return len(data.templates) if isinstance(first, str) else len(first)


def _decoding(images: Any) -> float:
    """Return the seconds to decode images, if that is done at every use; else 0."""
    count = min(_TIMED_IMAGES, len(images))
    if not isinstance(images, LazyImages) or not count:
        return 0.0
    return len(images) * _seconds(lambda: images[:count].to("cpu")) / count


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
