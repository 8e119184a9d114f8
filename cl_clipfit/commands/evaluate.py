"""Score a finished run's bank, merged or routed in other ways, on the same stream."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cl_clipfit.bank.delta import LazyValues
from cl_clipfit.bank.per_sample_norms import mixable, mixed_image_features
from cl_clipfit.bank.routing import TaskRouter
from cl_clipfit.config.merge_settings import BY_NAME, ESTIMATES, ModeSettings
from cl_clipfit.data.source import Source
from cl_clipfit.errors import UserError
from cl_clipfit.evaluation.fisher import diagonal_fisher
from cl_clipfit.evaluation.moments import norm_moments
from cl_clipfit.evaluation.scoreboard import Scoreboard, Scores
from cl_clipfit.evaluation.scoring import Scorer, score
from cl_clipfit.experiment.reopen import FinishedRun
from cl_clipfit.merging.methods import merged_values
from cl_clipfit.metrics.tables import accuracy
from cl_clipfit.runtime.out_of_memory import encode_images
from cl_clipfit.training.strategy import CLIPStrategy

Values = dict[str, Tensor]
ChosenScores = Callable[..., Tensor]  # _mixed or _one_at_a_time


@dataclass
class ModeResult:
    """The results of a mode.

    Attributes:
        mode: its name.
        settings: the settings that it reads.
        board: its tables, with all classes as labels.
        chosen: its tables, with only the classes of each image's chosen task as labels; None if the
            mode chooses no task.
        routed: percentage of the test images of tasks seen that are routed to their own task, one
            value per row, None if no task seen has test images; None if the mode chooses no task.
        batches: "mixed" or "one task at a time"; None if the mode chooses no task.
    """

    mode: str
    settings: dict[str, Any]
    board: Scoreboard
    chosen: Scoreboard | None = None
    routed: list[float | None] | None = None
    batches: str | None = None

    def summary(self) -> dict[str, Any]:
        """Return the results as JSON values."""
        chosen = self.chosen.summary() if self.chosen else None
        summary = {"mode": self.mode, "settings": self.settings, **self.board.summary()}
        more = {"chosen_labels": chosen, "routed": self.routed, "batches": self.batches}
        return summary | {key: value for key, value in more.items() if value is not None}


class BankEvaluation:
    """Scores a run's bank in several modes; what they share is computed once.

    Args:
        run: the finished run.
        settings: of the modes.
    """

    def __init__(self, run: FinishedRun, settings: ModeSettings) -> None:
        self.run, self.settings = run, settings
        self.strategy: CLIPStrategy = run.strategy
        self.tasks = run.scenario.trained_tasks
        if len(run.bank) != self.tasks:
            raise UserError(
                f"{run.bank.folder}: the bank holds {len(run.bank)} tasks, the stream {self.tasks}:"
                " repeat the run with --fresh"
            )
        try:
            self.base = self.strategy.zero_shot_point()
        except ValueError as error:
            raise UserError(f"{run.path}: {error}") from error
        self._verified: dict[int, LazyValues] = {}
        self._zero_shot: Scores | None = None
        self._estimates: dict[str, list[Any]] = {name: [] for name in ESTIMATES}

    def evaluate(self, mode: str) -> ModeResult:
        """Score a mode: one row before training and one after every task.

        Raises:
            UserError: the bank's weights or their merge give scores that are NaN.
        """
        try:
            return self._evaluate(mode)
        except ValueError as error:
            raise UserError(f"{self.run.bank.folder}, mode {mode}: {error}") from error

    def _evaluate(self, mode: str) -> ModeResult:
        result = ModeResult(
            mode, BY_NAME[mode].settings(self.settings), Scoreboard(self.run.scenario)
        )
        if self._zero_shot is None:
            model, probes = self.run.prepared.model, self.run.prepared.probes
            scorer = Scorer(self.strategy, self.run.scenario, probes, model)
            self._zero_shot = scorer.before_training(self.base)
        result.board.add(self._zero_shot)
        if not BY_NAME[mode].merges:
            self._evaluate_chosen(result)
        else:
            for task in range(1, self.tasks + 1):
                self.run.load_head(task)
                result.board.add(self._score(self.values_after(mode, task), task))
        return result

    def values_after(self, mode: str, task: int) -> Values:
        """Return the merged weights after a task, counted from 1."""
        method = BY_NAME[mode]
        estimates = self._estimate(method.estimate, task) if method.estimate else []
        # Read tensor by tensor: a bank of complete models may not fit into memory.
        values = [self._lazy(t) for t in range(1, task + 1)]
        return merged_values(method, values, self.base, self.settings, estimates)

    def _lazy(self, task: int) -> LazyValues:
        """Return what a task trained, verified once and read from disk at each use."""
        if task not in self._verified:
            self._verified[task] = self.run.bank.lazy(task)
        return self._verified[task]

    def load(self, task: int) -> Values:
        """Return what a task trained, counted from 1, on the strategy's device."""
        values = self.run.bank.load(task)
        return {name: value.to(self.strategy.device) for name, value in values.items()}

    def _score(self, values: Values, task: int) -> Scores:
        return score(self.strategy, self.run.scenario, self.run.prepared.probes, values, [task])

    def _estimate(self, name: str, tasks: int) -> list[Any]:
        """Return an estimate of tasks 1 to `tasks`, at their own weights, from their own images."""
        estimates = self._estimates[name]
        for task in range(len(estimates) + 1, tasks + 1):
            self.run.at_task(task)
            whole = self.run.scenario.of_task(task - 1)
            images, _ = self.strategy.task_sample(self.settings.images, whole)
            draws = torch.Generator().manual_seed(self.settings.seed + task)
            with self.strategy.model.weights(self.load(task)):
                if name == "moments":
                    estimates.append(norm_moments(self.strategy, images, len(whole.dataset)))
                else:
                    estimates.append(diagonal_fisher(self.strategy, images, draws))
        return estimates[:tasks]

    # ---- weights chosen for each image -----------------------------------------------------------

    def _evaluate_chosen(self, result: ModeResult) -> None:
        scenario, test = self.run.scenario, self.run.scenario.test
        true_tasks = scenario.test_tasks
        result.chosen, result.routed = Scoreboard(scenario), []
        assert self._zero_shot is not None
        result.chosen.add(self._zero_shot)
        features = self._zero_shot_features(test.images) if result.mode == "routed" else None
        routed = result.mode == "routed"
        tasks = range(1, self.tasks + 1) if routed else ()
        statistics = [self._statistics(task) for task in tasks]
        sources = self.run.prepared.probes if routed else {}
        seen = {n: self._zero_shot_features(source.test.images) for n, source in sources.items()}
        candidates = [
            *map(self.load, range(1, self.tasks + 1)),
            self.base,
        ]
        mix = _can_mix(self.strategy, self.base)
        result.batches = "mixed" if mix else "one task at a time"
        scorer = _mixed if mix else _one_at_a_time
        for task in range(1, self.tasks + 1):
            self.run.load_head(task)
            if features is None:
                choices = torch.where(true_tasks < task, true_tasks, self.tasks)
            else:
                route = self._router(statistics[:task])
                choices = route(features)
            scores = scorer(
                self.strategy, candidates, choices, test.images,
                self.strategy.model.text_features, self.strategy.score_all,
            )  # fmt: skip
            # Probes belong to no task: an oracle leaves them to zero-shot CLIP.
            probes = self._zero_shot.probes
            for name, source in sources.items():
                routes = route(seen[name])
                probes = {**probes, name: self._probe(source, routes, scorer, candidates)}
            result.board.add(Scores(scores, probes))
            result.chosen.add(Scores(self._within(scores, choices), probes))
            learned = true_tasks < task
            right = int((choices[learned] == true_tasks[learned]).sum())
            result.routed.append(100.0 * right / count if (count := int(learned.sum())) else None)

    def _statistics(self, task: int) -> dict[str, Tensor]:
        """Return the statistics of a task; an untrusted bank may contain anything."""
        statistics = self.run.bank.load(task, "statistics")
        means = statistics.get("means", torch.empty(0))
        count, width = means.shape if means.ndim == 2 else (0, 0)
        expected = {"labels": [count], "counts": [count], "means": [count, width]}
        expected["scatter"] = [width, width]
        shapes = {name: list(value.shape) for name, value in statistics.items()}
        if not count or shapes != expected:
            raise UserError(
                f"{self.run.bank.folder}: statistics of task {task} are not what a run writes:"
                " train again"
            )
        return statistics

    def _router(self, statistics: Sequence[Mapping[str, Tensor]]) -> Callable[[Tensor], Tensor]:
        """Return the function that chooses a task for each image by its features."""
        if len(statistics) == 1:  # there is nothing to choose
            return lambda features: torch.zeros(len(features), dtype=torch.long)
        try:
            rule, shrinkage = self.settings.rule, self.settings.shrinkage
            return TaskRouter(statistics, rule, shrinkage).route  # type: ignore[arg-type]
        except ValueError as error:
            raise UserError(f"--mode routed: {error}") from error

    def _zero_shot_features(self, images: Tensor) -> Tensor:
        with self.strategy.model.pretrained_weights():
            return encode_images(self.strategy, images)

    def _within(self, scores: Tensor, choices: Tensor) -> Tensor:
        """Keep the classes of each image's chosen task; all of them if it is not learned yet."""
        keep = torch.zeros(self.tasks + 1, scores.shape[1], dtype=torch.bool)
        for task, classes in enumerate(self.run.scenario.task_classes[: self.tasks]):
            keep[task, classes] = True
        keep[self.tasks] = True
        return scores.masked_fill(~keep[choices], -torch.inf)

    def _probe(
        self, source: Source, choices: Tensor, scorer: ChosenScores, candidates: Sequence[Values]
    ) -> float:
        names, templates = source.class_names, source.templates
        scores = scorer(
            self.strategy, candidates, choices, source.test.images,
            lambda: self.strategy.probe_features(names, templates),
            lambda images: self.strategy.score_probe(images, names, templates),
        )  # fmt: skip
        return accuracy(scores, source.test.labels)


def _can_mix(strategy: CLIPStrategy, names: Values) -> bool:
    plain = type(strategy).scores is CLIPStrategy.scores
    return plain and mixable(strategy.model, names)


@torch.no_grad()
def _mixed(
    strategy: CLIPStrategy, candidates: Sequence[Values], choices: Tensor, images: Tensor,
    text: Callable[[], Tensor], whole: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """Score every image with its task's weights, all tasks in one pass of the image tower."""
    model, features = strategy.model, {}
    for task in choices.unique().tolist():
        with model.weights(candidates[task]):
            features[task] = text()
    rows = torch.stack(list(features.values()))
    order = torch.empty(len(candidates), dtype=torch.long)
    order[list(features)] = torch.arange(len(features))

    def score_batch(batch: Tensor, tasks: Tensor, index: Tensor) -> Tensor:
        image = mixed_image_features(model, batch, tasks, candidates)
        scores = torch.empty(len(batch), rows.shape[1])
        for row in index.unique().tolist():
            mask = index == row
            scores[mask.cpu()] = model.logits(image[mask], rows[row]).cpu()
        return scores

    return strategy.in_batches(score_batch, images, choices, order[choices])


def _one_at_a_time(
    strategy: CLIPStrategy, candidates: Sequence[Values], choices: Tensor, images: Tensor,
    text: Callable[[], Tensor], whole: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """Score every image with its task's weights, one pass per task."""
    scores: Tensor | None = None
    for task in choices.unique().tolist():
        mask = choices == task
        with strategy.model.weights(candidates[task]):
            rows = whole(images[mask])
        scores = rows.new_empty(len(images), rows.shape[1]) if scores is None else scores
        scores[mask] = rows
    assert scores is not None
    return scores
