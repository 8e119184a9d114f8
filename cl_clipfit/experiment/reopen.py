"""Open finished runs to evaluate them in other ways."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_clipfit import __version__
from cl_clipfit.bank.store import DeltaBank
from cl_clipfit.clip import ModelIdentity
from cl_clipfit.config.command import RunConfig, read_config
from cl_clipfit.data.streams import Scenario
from cl_clipfit.errors import UserError, is_file
from cl_clipfit.experiment.build import build_strategy, select_first
from cl_clipfit.experiment.identity import code_has_changed
from cl_clipfit.experiment.prepare import Prepared, prepare
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.runtime.device import resolve_device
from cl_clipfit.runtime.progress import Progress
from cl_clipfit.storage.result import RESULT, read_result
from cl_clipfit.storage.run_folder import BANK, CONFIG, MERGED_FROM
from cl_clipfit.training.strategy import CLIPStrategy


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, ready to be evaluated in other ways.

    Attributes:
        path: its folder.
        result: content of its `result.json`.
        prepared: the command that repeats it.
        plan: its plan.
        scenario: its stream.
        strategy: at the pretrained weights, with the trainable parameters selected.
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
        """Set the strategy's task and seen classes to those of a task, counted from 1."""
        tasks = self.scenario.brought
        self.strategy.task_classes = list(tasks[task - 1])
        seen = (c for classes in tasks[:task] for c in classes)
        self.strategy.seen_classes = list(dict.fromkeys(seen))

    def load_head(self, task: int, strategy: CLIPStrategy | None = None) -> None:
        """Give a strategy the closed-form head of a task, counted from 1; nothing without one.

        Args:
            task: of the bank.
            strategy: default: the run's.

        Raises:
            UserError: the bank's file does not hold such a head.
        """
        load_head(self.bank, task, strategy or self.strategy)


def load_head(bank: DeltaBank, task: int, strategy: CLIPStrategy) -> None:
    """Give a strategy the closed-form head that a bank holds of a task; nothing without one.

    Raises:
        UserError: the bank's file does not hold such a head.
    """
    if "head" not in bank.index["tasks"][task - 1]["files"]:
        return
    try:
        strategy.load_head_state(bank.load(task, "head"))
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{bank.folder}: the head of task {task} is not what {bank.index['strategy']} writes:"
            " train again"
        ) from error


def open_run(
    path: Path | str, progress: Progress | None = None, device: str | None = None
) -> FinishedRun:
    """Open a finished run's folder, in the precision it was trained with.

    Args:
        path: the folder.
        progress: receives notes and warnings; default none.
        device: where to evaluate; default the device it was trained on, or the CPU if this machine
            lacks it.

    Raises:
        UserError: there is no finished run, it has no bank, or data, code or weights differ from
            those it was trained with. A run of another version of cl_clipfit is opened with a
            warning.
    """
    path, progress = Path(path).resolve(), progress or Progress()
    if not is_file(path / CONFIG):
        raise UserError(f"{path}: not a run folder: it has no {CONFIG}")
    result = read_result(path / RESULT)
    if result is None:
        raise UserError(f"{path}: this run is not finished: repeat the command that started it")
    settings = read_config(path / CONFIG, ignored=(MERGED_FROM,))
    trained_on = str(settings.get("device", "cpu"))
    settings["device"] = device or available_device(trained_on, progress)
    config = RunConfig.model_validate(settings)
    if len(config.strategy) != 1 or len(config.seed) != 1:
        raise UserError(
            f"{path / CONFIG} names {len(config.strategy)} strategies and"
            f" {len(config.seed)} seeds, and a run has one of each: restore the original file"
        )
    # model_copy does not validate: the folder exists, whatever its name.
    prepared = prepare(config.model_copy(update={"output": path.parent}), progress)
    plan = prepared.plans[0]
    if plan.cls.learning == "none":
        raise UserError(f"{path}: {plan.label} learns nothing, so there is no bank")
    _check_same(path, result, prepared, plan, trained_on, progress)
    scenario = prepared.scenario(plan.seed)
    strategy = build_strategy(
        plan, prepared.stream.compute, prepared.model, scenario.class_names, scenario.templates
    )
    select_first(plan, strategy, scenario.brought[0])
    bank = open_bank(path, strategy, prepared.model.identity)
    return FinishedRun(path, result, prepared, plan, scenario, strategy, bank)


def was_deterministic(path: Path) -> bool:
    """Return whether a run was trained with `--deterministic`; False if there is no run."""
    config = path / CONFIG
    return is_file(config) and read_config(config, (MERGED_FROM,)).get("deterministic", False)


def available_device(device: str, progress: Progress) -> str:
    """Return the device a run was trained on, or the CPU if this machine lacks it."""
    try:
        resolve_device(device)
    except UserError:
        progress.note(f"this machine has no {device}, which the run was trained on: using the CPU")
        return "cpu"
    return device


def _check_same(
    path: Path, result: dict[str, Any], prepared: Prepared, plan: RunPlan, trained_on: str,
    progress: Progress,
) -> None:  # fmt: skip
    """Refuse data, code or settings that are not those of the run.

    The code of two versions of cl_clipfit always differs, and so do their digests: between versions
    only the data, the settings (covered by the manifest) and the model's weights must be the same.
    """
    if prepared.source.sha256 != result["data"]["sha256"]:
        raise UserError(f"{path}: the data are not those of the run: restore the original data")
    if not check_version(path, result, progress):
        return
    origin = result.get("merged") or {}
    if not prepared.folder(plan, trained_on=trained_on, **origin).has_digest(result["digest"]):
        raise UserError(
            f"{path}: the code of the strategy or a probe, or the model, are not those that the"
            " run was made with: repeat the run"
        )


def check_version(path: Path, result: dict[str, Any], progress: Progress) -> bool:
    """Warn of a run made by other code; return whether it was made by this version."""
    version = result.get("environment", {}).get("cl_clipfit")
    if version != __version__:
        progress.warn(
            f"{path.name} was made by cl_clipfit {version}, and this is {__version__}: what is"
            " measured now is measured by this version's code"
        )
        return False
    if code_has_changed(result):
        progress.warn(
            f"{path.name} was made by other code of cl_clipfit {version}: what is measured now is"
            " measured by this code"
        )
    return True


def open_bank(path: Path, strategy: CLIPStrategy, identity: ModelIdentity | None) -> DeltaBank:
    """Open the bank of a run; refuse one that does not fit the model."""
    bank = DeltaBank.open(path / BANK)
    bank.check_base(identity)
    shapes = {name: list(p.shape) for name, p in strategy.model.named_parameters()}
    for name, shape in bank.index["selection"].items():
        if shapes.get(name) != shape:
            raise UserError(
                f"{bank.folder}: it holds {name} {shape}, which this model does not have"
            )
    bank.verify(finite=True)
    return bank
