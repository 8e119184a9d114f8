"""Obtain the weights of a task by training; `commands.merge` obtains them by merging."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cl_clipfit.data.images.decode import THREADS
from cl_clipfit.data.images.lazy import LazyImages
from cl_clipfit.data.streams import Scenario
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.training.features import tasks_in_reach
from cl_clipfit.training.optimization import online_steps
from cl_clipfit.training.strategy import CLIPStrategy


class Learner:
    """Trains a strategy on one task after another.

    Args:
        strategy: the method.
        plan: of the run; its recipe is None if nothing trains.
        scenario: the stream of tasks.
        online: images per experience of an online stream, or None.

    Attributes:
        announced: whether the duration is estimated and reported before training.
        origin: where merged weights come from, for the result; None if they are trained.
    """

    announced = True
    origin: dict[str, Any] | None = None

    def __init__(
        self, strategy: CLIPStrategy, plan: RunPlan, scenario: Scenario, online: int | None = None
    ) -> None:
        self.strategy, self.plan, self.scenario, self.online = strategy, plan, scenario, online

    def learn(self, task: int) -> None:
        """Learn all experiences of a task, counted from 1."""
        scenario = self.scenario
        stream, tasks = scenario.benchmark.train_stream, scenario.experience_tasks
        for experience, index in zip(stream, tasks, strict=True):
            if index == task - 1:
                self.learn_experience(experience, task)

    def learn_experience(self, experience: Any, task: int) -> None:
        """Train on one experience."""
        workers = THREADS if isinstance(self.scenario.train.images, LazyImages) else 0
        self.strategy.train(experience, eval_streams=[], num_workers=workers)

    def size(self, task: int) -> tuple[int, int]:
        """Return epochs and optimiser steps of a task, for the progress bar."""
        if self.plan.recipe is None:
            return 0, 0
        counts, tasks = self.scenario.train_samples, self.scenario.trained_tasks
        images = sum(counts[at] for at in tasks_in_reach(self.strategy.reach, task - 1, tasks))
        steps = online_steps(self.plan.recipe, images, self.online or images)
        work = self.strategy.workload()
        epochs = work.epochs if task <= (work.tasks or task) else 0
        return epochs, epochs * steps

    def host_values(self, task: int) -> Mapping[str, Tensor] | None:
        """Return the weights that were merged into those of the task, if any."""
        return self.strategy.compared().get("host")

    def parents(self, task: int) -> list[str]:
        """Return the names of the weights that the task started from."""
        return [f"task-{task - 1:03d}" if task > 1 else "zero-shot"]
