"""What a command needs before it trains: stream, plans, data, probes and model; finished runs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cl_clipfit.building import build_strategy, select_first
from cl_clipfit.clip import CLIPClassifier, check_model, create_classifier
from cl_clipfit.config import RunConfig, read_config
from cl_clipfit.data.source import DataRequest, Source
from cl_clipfit.data.streams import Scenario, build_scenario
from cl_clipfit.environment import resolve_device, use_exact_fp32
from cl_clipfit.errors import UserError, is_file
from cl_clipfit.labels import split_label
from cl_clipfit.plan import StreamPlan, load_source, plan_stream
from cl_clipfit.registry import Registry
from cl_clipfit.report.display import ConsoleDisplay
from cl_clipfit.runplan import RunPlan, plan_runs, run_digest
from cl_clipfit.runs import RunFolder, read_result
from cl_clipfit.strategy import CLIPStrategy
from cl_clipfit.tuning.bank import DeltaBank

MERGED_FROM = "merged_from"  # in the config.yaml of a run that was merged from another one


@dataclass(frozen=True)
class Prepared:
    """All that the runs of a command share, and their plans.

    Attributes:
        config: the command.
        registry: strategies and scenarios.
        stream: what all runs share.
        plans: the runs.
        source: the stream's data set.
        probes: data sets scored zero-shot.
        model: the pretrained classifier, without classes.
    """

    config: RunConfig
    registry: Registry
    stream: StreamPlan
    plans: list[RunPlan]
    source: Source
    probes: Mapping[str, Source]
    model: CLIPClassifier

    def scenario(self, seed: int) -> Scenario:
        """Build the stream; few-shot streams differ by seed, others do not."""
        stream = self.stream
        return build_scenario(
            stream.entry.name,
            self.source,
            tasks=stream.tasks,
            order=stream.class_order,
            shots=stream.shots,
            validation=stream.validation,
            templates=stream.templates,
            seed=0 if stream.shots is None else seed,
        )

    def folder(self, plan: RunPlan, name: str = "", trained_on: str = "", **more: Any) -> RunFolder:
        """Return where a run goes.

        Args:
            plan: the run.
            name: in the folder's name; default the strategy's.
            trained_on: the device, where the run was trained on another one than the command's.
            **more: joins what the folder's name holds a hash of.
        """
        assert self.model.identity is not None
        data = [self.source.sha256, *(probe.sha256 for probe in self.probes.values())]
        precision = self.config.precision
        device = torch.device(trained_on or self.stream.device)
        stream = replace(self.stream, device=device)
        digest = run_digest(stream, plan, precision, self.model.identity, data, more)
        scenario = self.stream.entry.name
        strategy = name or plan.strategy.name
        return RunFolder(self.config.output, scenario, strategy, plan.seed, digest)


def prepare(config: RunConfig, display: ConsoleDisplay) -> Prepared:
    """Resolve a command, read its data and load its model.

    Raises:
        UserError: anything wrong with names, files or values.
    """
    use_exact_fp32()
    registry = Registry(config.plugin)
    _import_plugins(registry, config, display)
    stream = plan_stream(config, registry)
    plans = plan_runs(config, registry, stream.entry)
    check_model(stream.model)  # a wrong name should not cost the reading of a data set
    request = DataRequest(config.data_dir, config.unverified_data, display.note, display.transfer)
    try:
        source = load_source(stream.entry, stream.options, request)
    finally:
        display.stop()  # of a download
    elsewhere = replace(request, data_dir=None)
    probes = {e.name: load_source(e, e.options_class()(), elsewhere) for e in stream.probes}
    model = create_classifier(stream.model, stream.device)
    return Prepared(config, registry, stream, plans, source, probes, model)


def _import_plugins(registry: Registry, config: RunConfig, display: ConsoleDisplay) -> None:
    """Import every `--plugin` file; name those that fail, and go on without them."""
    for entry in registry.plugins:
        try:
            if entry.error:
                raise UserError(entry.error)
            entry.load()
        except UserError as error:
            wanted = [split_label(label)[0] for label in config.strategy]
            if entry.name in (*wanted, config.scenario):
                raise
            display.warn(f"plug-in left out: {error}")


def _available(device: str, display: ConsoleDisplay) -> str:
    """Return the device a run was trained on, or the CPU where this machine has none such."""
    try:
        resolve_device(device)
    except UserError:
        display.note(f"this machine has no {device}, which the run was trained on: using the CPU")
        return "cpu"
    return device


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
        tasks = self.scenario.task_classes
        self.strategy.task_classes = list(tasks[task - 1])
        self.strategy.seen_classes = [c for classes in tasks[:task] for c in classes]


def open_run(path: Path, display: ConsoleDisplay, device: str | None = None) -> FinishedRun:
    """Open a finished run's folder.

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
    prepared = prepare(RunConfig.model_validate(settings | {"output": path.parent}), display)
    plan = prepared.plans[0]
    if plan.recipe is None:
        raise UserError(f"{path}: {plan.label} trains nothing, so there is no bank")
    if prepared.source.sha256 != result["data"]["sha256"]:
        raise UserError(f"{path}: the data are not those of the run: give it its own back")
    origin = result.get("merged") or {}
    if prepared.folder(plan, trained_on=trained_on, **origin).digest != result.get("digest"):
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
    bank.verify()
    return FinishedRun(path, result, prepared, plan, scenario, strategy, bank)
