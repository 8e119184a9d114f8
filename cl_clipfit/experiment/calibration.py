"""Measure on training images how sure a finished run is of classes that it has seen."""

import torch

from cl_clipfit.data.streams import Scenario
from cl_clipfit.storage.calibration import SHARE
from cl_clipfit.training.strategy import CLIPStrategy

_IMAGES = 512  # of all tasks; a quantile of 5 % needs no more


def measure_threshold(strategy: CLIPStrategy, scenario: Scenario) -> tuple[float, int] | None:
    """Return the probability below which an image is left open, and how many images it is from.

    It is a quantile of the largest probability among the classes seen, after the last task, over
    training images of all tasks, as many of each class; `SHARE` of them are below it. No test image
    is looked at, and nothing that is trained depends on it. The method has trained on these images,
    and is surer of them than of others: of test images, more than that share stay open.

    Args:
        strategy: the method, after its last task.
        scenario: the stream of tasks.

    Returns:
        None if a score is NaN or infinite.
    """
    each = max(1, _IMAGES // scenario.trained_tasks)
    tasks = map(scenario.of_task, range(scenario.trained_tasks))
    images = [strategy.task_sample(each, task, by_class=True)[0] for task in tasks]
    scores = strategy.score_all(torch.cat(images))[:, strategy.seen_classes].float()
    confidence = scores.softmax(1).amax(1).sort().values
    threshold = float(confidence[int(SHARE * len(confidence))])
    return (threshold, len(confidence)) if bool(confidence.isfinite().all()) else None
