"""Runs of earlier commands, opened to be evaluated in other ways."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_clipfit.bank.store import DeltaBank
from cl_clipfit.config.command import RunConfig, read_config
from cl_clipfit.data.streams import Scenario
from cl_clipfit.errors import UserError, is_file
from cl_clipfit.experiment.build import build_strategy, select_first
from cl_clipfit.experiment.prepare import Prepared, prepare
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.report.display import ConsoleDisplay
from cl_clipfit.runtime.device import resolve_device
from cl_clipfit.storage.result import read_result
from cl_clipfit.storage.run_folder import MERGED_FROM
from cl_clipfit.training.strategy import CLIPStrategy


def _available(device: str, display: ConsoleDisplay) -> str:
    """Return the device a run was trained on, or the CPU where this machine has none such."""
    try:
        resolve_device(device)
    except UserError:
        display.note(f"this machine has no {device}, which the run was trained on: using the CPU")
        return "cpu"
    return device


def was_deterministic(path: Path) -> bool:
    """Tell whether a run was trained with `--deterministic`; False where there is no run."""
    config = path / "config.yaml"
    return is_file(config) and read_config(config, (MERGED_FROM,)).get("deterministic", False)


@dataclass(frozen=True)
class FinishedRun:
    """A run of an earlier command, ready to be evaluated in other ways.

    Attributes:
        path: its folder.
        result: its `result.json`.
        prepared: the command that repeats it.
        plan: its plan.
        scenario: its stream.
        strategy: at the pretrained weights, its selection made.
        bank: what its tasks trained.
    """

    path: Path
    result: dict[str, Any]
    prepared: Prepared
    plan: RunPlan
    scenario: Scenario
    strategy: CLIPStrategy
    bank: DeltaBank

    def at_task(self, task: int) -> None:
        """Put the strategy's scopes where they were in a task, counted from 1."""
        tasks = self.scenario.brought
        self.strategy.task_classes = list(tasks[task - 1])
        seen = (c for classes in tasks[:task] for c in classes)
        self.strategy.seen_classes = list(dict.fromkeys(seen))


def open_run(path: Path, display: ConsoleDisplay, device: str | None = None) -> FinishedRun:
    """Open a finished run's folder, to go on in the precision it was trained with.

    Args:
        path: the folder.
        display: told what goes on.
        device: where to evaluate; default where it was trained, or the CPU where that is missing.

    Raises:
        UserError: no finished run, one without a bank, or other data or weights than it was
            trained with.
    """
    path = path.resolve()
    if not is_file(path / "config.yaml"):
        raise UserError(f"{path}: no run folder: it has no config.yaml")
    result = read_result(path / "result.json")
    if result is None:
        raise UserError(f"{path}: this run is not finished: repeat the command that began it")
    settings = read_config(path / "config.yaml", besides=(MERGED_FROM,))
    trained_on = str(settings.get("device", "cpu"))
    settings["device"] = device or _available(trained_on, display)
    config = RunConfig.model_validate(settings)
    if len(config.strategy) != 1 or len(config.seed) != 1:
        raise UserError(
            f"{path / 'config.yaml'} names {len(config.strategy)} strategies and"
            f" {len(config.seed)} seeds, and a run has one each: put back what was there"
        )
    # The folder is there, whatever its name: it is not validated.
    prepared = prepare(config.model_copy(update={"output": path.parent}), display)
    plan = prepared.plans[0]
    if plan.recipe is None:
        raise UserError(f"{path}: {plan.label} trains nothing, so there is no bank")
    if prepared.source.sha256 != result["data"]["sha256"]:
        raise UserError(f"{path}: the data are not those of the run: give it its own back")
    origin = result.get("merged") or {}
    if not prepared.folder(plan, trained_on=trained_on, **origin).has_digest(result["digest"]):
        raise UserError(
            f"{path}: the code of the strategy, a probe, the model or this version are not those"
            " that the run was made with: repeat the run"
        )
    scenario = prepared.scenario(plan.seed)
    strategy = build_strategy(
        plan, prepared.stream, prepared.model, scenario.class_names, scenario.templates
    )
    select_first(plan, strategy, scenario.task_classes[0])
    bank = DeltaBank.open(path / "bank")
    bank.check_base(prepared.model.identity)
    shapes = {name: list(p.shape) for name, p in strategy.model.named_parameters()}
    for name, shape in bank.index["selection"].items():
        if shapes.get(name) != shape:
            raise UserError(f"{bank.folder}: it holds {name} {shape}, which this model has not")
    bank.verify(finite=True)
    return FinishedRun(path, result, prepared, plan, scenario, strategy, bank)
