"""Measure on training images how sure a finished run is of classes that it has seen."""

import torch
from torch import Tensor

from cl_clipfit.data.streams import Scenario
from cl_clipfit.storage.calibration import SHARE
from cl_clipfit.training.strategy import CLIPStrategy

_IMAGES = 512  # of all tasks; a quantile of 5 % needs no more


def measure_threshold(strategy: CLIPStrategy, scenario: Scenario) -> tuple[float, int] | None:
    """Return the sureness below which an image is left open, and how many images it is from.

    It is a quantile of the sureness after the last task, over training images of all tasks, as many
    of each class; `SHARE` of them are below it. No test image is looked at, and nothing that is
    trained depends on it. The method has trained on these images, and is surer of them than of
    others: of test images, more than that share stay open.

    Args:
        strategy: the method, after its last task.
        scenario: the stream of tasks.

    Returns:
        None if there is a single class, or if a score is NaN or infinite.
    """
    each = max(1, _IMAGES // scenario.trained_tasks)
    tasks = map(scenario.of_task, range(scenario.trained_tasks))
    images = [strategy.task_sample(each, task, by_class=True)[0] for task in tasks]
    learned = scenario.task_classes[: scenario.trained_tasks]  # a merge has seen none itself
    seen = strategy.seen_classes or sorted({label for classes in learned for label in classes})
    values = sureness(strategy.score_all(torch.cat(images))[:, seen])
    if not bool(values.isfinite().all()):
        return None
    return float(values.sort().values[int(SHARE * len(values))]), len(values)


def sureness(scores: Tensor) -> Tensor:
    """Return the log-odds of the most probable class, (N,): log p / (1 - p).

    It rises with p and, unlike it, tells images apart where all of them have a p of nearly 1.

    Args:
        scores: (N, C), logits.

    Example:
        >>> sureness(torch.tensor([[3.0, 1.0], [200.0, 100.0]])).tolist()
        [2.0, 100.0]
    """
    best, at = scores.double().max(1, keepdim=True)
    others = scores.double().scatter(1, at, -torch.inf).logsumexp(1)
    return best.flatten() - others
