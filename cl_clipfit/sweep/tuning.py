"""Search settings with Optuna: spaces, studies, and which setting leads before each task.

A trial is a run on held-out training images of a class order and a seed that the sweep does not
report; its score is the mean over the stream of the accuracy after each task.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from cl_clipfit.config.command import RECIPE_OPTIONS
from cl_clipfit.config.options import explain
from cl_clipfit.errors import UserError
from cl_clipfit.experiment.run_plan import ResolvedCommand
from cl_clipfit.experiment.stream_plan import StreamPlan
from cl_clipfit.registry import Registry
from cl_clipfit.storage.result import Result
from cl_clipfit.sweep.engines import needed
from cl_clipfit.sweep.file import Cell, SweepFile, assigned_name, describe
from cl_clipfit.sweep.job import Job
from cl_clipfit.sweep.planning import Registries, make_job, placed, resolve_cell

HELD_OUT = 0.25  # of the training images of every class
_ORDER, _SEED = 11, 100  # the first that are tried; what the sweep reports is left alone
_RANDOM_TRIALS = 10  # before Optuna's sampler follows what it has seen
_PER_RUN = ("seed", "class_order", "data_seed", "init_seed")


class Range(BaseModel):
    """The numbers from `low` to `high`: whole ones if both are; evenly on a log scale if `log`."""

    model_config = ConfigDict(extra="forbid")
    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Range":
        if not self.low < self.high:
            raise ValueError("low must be below high")
        if self.log and self.low <= 0:
            raise ValueError("on a log scale, low must be above 0")
        return self

    def suggest(self, trial: Any, name: str) -> int | float:
        """Return the value that Optuna wants to try."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return int(trial.suggest_int(name, self.low, self.high, log=self.log))
        value = trial.suggest_float(name, float(self.low), float(self.high), log=self.log)
        return min(max(float(f"{value:.3g}"), self.low), self.high)  # no one types more digits

    def holds(self, value: Any) -> bool:
        """Return whether a value is in the range."""
        return isinstance(value, int | float) and self.low <= value <= self.high


Space = Mapping[str, Range | list[Any]]


def read_space(sweep: SweepFile) -> Space:
    """Return what the section `tune` searches: a range or a list of values for each setting.

    Raises:
        UserError: it is missing or empty, or a range is wrong.
    """
    if not sweep.tune:
        raise UserError(f"{sweep.path}: --tune needs a section tune: settings with their ranges")
    space: dict[str, Range | list[Any]] = {}
    for key, value in sweep.tune.items():
        if isinstance(value, list) and value:
            space[key] = value
            continue
        try:
            space[key] = Range.model_validate(value)
        except ValidationError as error:
            raise UserError(
                f"{sweep.place(key)}: expected a list of values, or {{low: 1e-4, high: 1e-2, log:"
                f" true}}: {explain(error)}"
            ) from error
    return space


@dataclass
class Trial:
    """One setting that was tried.

    Attributes:
        handle: Optuna's trial.
        values: the settings.
        job: the run.
        curve: accuracy after each task, in percent; None until it is finished, or if it failed.
    """

    handle: Any
    values: Cell
    job: Job
    curve: list[float] | None = None

    @property
    def score(self) -> float:
        """Return the mean over the stream, in percent."""
        return fmean(self.curve) if self.curve else float("-inf")


@dataclass
class Study:
    """A method on a stream, whose settings are searched.

    Attributes:
        cell: the settings of its runs without seed and class order.
        held_out: settings of all trials: other images, order and seed than the sweep reports.
        space: what is searched of them.
        resolved: the method, for its defaults.
        registry: strategies and scenarios.
        study: Optuna's.
        trials: what was tried.
        results: of the trials that are finished.
    """

    cell: Cell
    held_out: Cell
    space: Space
    resolved: ResolvedCommand
    registry: Registry
    study: Any
    trials: list[Trial] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return method and stream, for the screen."""
        return f"{self.cell['strategy']} on {self.resolved.stream.entry.name}"

    def ask(self, output: Path) -> Trial:
        """Return the next setting to try, as a run.

        Args:
            output: folder of all run folders.
        """
        handle = self.study.ask()
        values = {
            key: space.suggest(handle, key)
            if isinstance(space, Range)
            else space[handle.suggest_categorical(key, [*range(len(space))])]
            for key, space in self.space.items()
        }
        cell = {**self.cell, **self.held_out, **values}
        resolved, kept = resolve_cell(cell, self.registry)
        job = make_job(resolved, kept, describe(kept, set(values)), output)
        trial = Trial(handle, values, replace(job, name=f"{job.name}, trial {handle.number}"))
        self.trials.append(trial)
        return trial

    def tell(self, trial: Trial, result: Result | None) -> None:
        """Score a trial by its run; None if that failed."""
        if result is None:
            self.study.tell(trial.handle, state=needed("optuna", "tune").trial.TrialState.FAIL)
            return
        self.results.append(result)
        trial.curve = [float(value) for value in result.curves["accuracy"][1:] if value is not None]
        self.study.tell(trial.handle, trial.score)

    def best(self) -> Trial:
        """Return the trial with the best mean over the stream; of equal ones the first.

        Raises:
            UserError: all failed.
        """
        if all(trial.curve is None for trial in self.trials):
            raise UserError(f"--tune: every trial of {self.name} failed")
        return max(self.trials, key=lambda trial: trial.score)


def leaders(curves: Sequence[Sequence[float]]) -> list[int]:
    """Return which trial leads before each task from the second on, by the tasks before it.

    Args:
        curves: accuracy after each task, for every trial.

    Example:
        >>> leaders([[90, 10, 10], [80, 60, 50]])  # the first task alone misleads
        [0, 1]
    """
    tasks = len(curves[0])
    return [
        max(range(len(curves)), key=lambda at: fmean(curves[at][:task])) for task in range(1, tasks)
    ]


def make_studies(sweep: SweepFile) -> list[Study]:
    """Return a study for every method and stream of a sweep that has a setting to search.

    Raises:
        UserError: Optuna is not installed, or no run has such a setting.
    """
    optuna, space = needed("optuna", "tune"), read_space(sweep)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    registries, studies = Registries(), dict[str, Study]()
    for cell in sweep.cells():
        base = {k: v for k, v in cell.items() if k not in _PER_RUN and k not in space}
        registry = registries.of(base)
        try:
            for tried in _ends(space):
                resolved, kept = resolve_cell({**base, **tried}, registry)
        except UserError as error:
            raise placed(error, sweep, {**base, **tried}, set(space)) from error
        trained = resolved.plans[0].recipe is not None
        searched = {
            key: one
            for key, one in space.items()
            if key in kept and (assigned_name(key) or trained or key not in RECIPE_OPTIONS)
        }
        if searched and repr(sorted(base.items())) not in studies:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Optuna 4 calls `constant_liar` experimental
                sampler = optuna.samplers.TPESampler(
                    seed=0, n_startup_trials=_RANDOM_TRIALS, constant_liar=True
                )
            study = optuna.create_study(direction="maximize", sampler=sampler)
            default, _ = resolve_cell(base, registry)
            if start := _defaults(default, searched):
                study.enqueue_trial(start)
            held_out = scored_on(sweep, base, default.stream)
            studies[repr(sorted(base.items()))] = Study(
                base, held_out, searched, default, registry, study
            )
    if not studies:
        names = ", ".join(space)
        raise UserError(f"{sweep.path}: --tune: no run of the sweep has a setting {names}")
    return list(studies.values())


def _ends(space: Space) -> list[Cell]:
    """Return settings in which every end of every range, and every value of a list, comes once."""
    values = {k: [s.low, s.high] if isinstance(s, Range) else s for k, s in space.items()}
    most = max(map(len, values.values()))
    return [{key: each[at % len(each)] for key, each in values.items()} for at in range(most)]


def _defaults(resolved: ResolvedCommand, space: Space) -> dict[str, Any]:
    """Return the method's defaults, which are tried first; {} if one is not in its space."""
    settings, start = resolved.plans[0].settings(), {}
    for key, one in space.items():
        value = settings.get(key.rpartition(".")[2])
        if isinstance(one, Range):
            if not one.holds(value):
                return {}
            start[key] = value
        else:
            if str(value) not in [str(choice) for choice in one]:
                return {}
            start[key] = [str(choice) for choice in one].index(str(value))
    return start


def scored_on(sweep: SweepFile, cell: Cell, stream: StreamPlan) -> Cell:
    """Return what the trials of a study are scored on: held-out images, another order and seed.

    Args:
        sweep: the file, whose seeds and orders are left alone.
        cell: the settings of the study's runs.
        stream: theirs.
    """
    cells = sweep.cells()
    seeds = {int(one.get("seed", 0)) for one in cells}
    orders = {str(one.get("class_order")) for one in cells}
    base: Cell = {"seed": next(seed for seed in count(_SEED) if seed not in seeds), "probe": []}
    base["validation"] = cell.get("validation", HELD_OUT)
    fixed = stream.facts.PROTOCOL != "class-incremental" or isinstance(stream.tasks, Path)
    if not fixed and stream.facts.TASKS != "yours":
        order = next(number for number in count(_ORDER) if f"seed:{number}" not in orders)
        base["class_order"] = f"seed:{order}"
    return base
