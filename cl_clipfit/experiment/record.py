"""The numbers of a run: collected while it is running, and written to `result.json` at its end."""

from dataclasses import asdict, dataclass, field, fields
from statistics import fmean
from typing import Any

import torch

from cl_clipfit.data.orders import order_seed
from cl_clipfit.data.streams import Scenario
from cl_clipfit.evaluation.scoreboard import Scoreboard
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.experiment.stream_plan import StreamPlan
from cl_clipfit.metrics.functional import last_accuracy, learning_accuracy
from cl_clipfit.registry import Entry
from cl_clipfit.runtime import device as environment
from cl_clipfit.training.strategy import CLIPStrategy


@dataclass
class RunRecord:
    """The numbers of a run so far.

    Attributes:
        board: tables with a row before training and one after every task.
        compared: the tables of other weights that the method is compared with, by name.
        zero_shot: accuracy over the classes seen of the model as it was before training.
        zero_shot_learning: the accuracy of that model on each task, among the classes of it and of
            the tasks before it.
        changes: root mean square change of every layer from the pretrained values, per task.
        kept_bytes: size of the state that the method keeps for later tasks, after each task.
        train_seconds: time of training, per task.
        measure_seconds: time of measuring landscapes, per task.
        eval_seconds: time of evaluation, per row of `board`.
        encode_seconds: time of encoding images once, before everything else.
    """

    board: Scoreboard
    compared: dict[str, Scoreboard] = field(default_factory=dict)
    zero_shot: list[float | None] = field(default_factory=list)
    zero_shot_learning: list[float | None] = field(default_factory=list)
    changes: list[dict[str, float]] = field(default_factory=list)
    kept_bytes: list[int] = field(default_factory=list)
    train_seconds: list[float] = field(default_factory=list)
    measure_seconds: list[float] = field(default_factory=list)
    eval_seconds: list[float] = field(default_factory=list)
    encode_seconds: list[float] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """Return all numbers, for a checkpoint."""
        plain = {
            f.name: list(getattr(self, f.name))
            for f in fields(self)
            if f.name not in ("board", "compared")
        }
        compared = {name: board.state() for name, board in self.compared.items()}
        return {**plain, "board": self.board.state(), "compared": compared}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned; add what this process has encoded."""
        state = {**state, "encode_seconds": state["encode_seconds"] + self.encode_seconds}
        self.board.restore(state.pop("board"))
        for name, board in state.pop("compared").items():
            self.compared[name] = Scoreboard(self.board.scenario)
            self.compared[name].restore(board)
        for name, value in state.items():
            setattr(self, name, value)

    def below_zero_shot(self) -> list[str]:
        """Warn if zero-shot CLIP knows the tasks better, as they come or at the end."""
        tables = self.board.tables
        known = [accuracy for accuracy in self.zero_shot_learning if accuracy is not None]
        learned, mean = learning_accuracy(tables.seen), fmean(known) if known else None
        warnings = []
        if learned is not None and mean is not None and learned < mean:
            warnings.append(
                f"learning accuracy {learned:.1f} is below the {mean:.1f} of zero-shot CLIP: the"
                " recipe does not suit these data; try more --epochs and another --lr, and compare"
                " them with --validation 0.3"
            )
        last, start = last_accuracy(tables.seen, tables.test_samples), self.zero_shot[-1]
        if last is not None and start is not None and last < start and not warnings:
            warnings.append(
                f"last accuracy {last:.1f} is below the {start:.1f} of zero-shot CLIP: the later"
                " tasks cost more than was learned"
            )
        return warnings


def build_result(
    stream: StreamPlan,
    plan: RunPlan,
    scenario: Scenario,
    strategy: CLIPStrategy,
    record: RunRecord,
) -> dict[str, Any]:
    """Return the content of `result.json` of a run that has ended."""
    summary = record.board.summary()
    return {
        "scenario": scenario.name,
        **_describe_plan(stream, plan),
        **_describe_model(stream, strategy),
        **_describe_data(stream, scenario),
        **summary,
        "curves": {**summary["curves"], "zero_shot": record.zero_shot},
        "change_by_layer": record.changes,
        "kept": {
            "what": plan.strategy.about.get("NEEDS", ""),
            "bytes": record.kept_bytes,
            "exemplars": plan.exemplars,
        },
        "merge": describe_merge(strategy, record),
        "timings": {
            "train_seconds": record.train_seconds,
            "measure_seconds": record.measure_seconds,
            "eval_seconds": record.eval_seconds,
            "encode_seconds": record.encode_seconds,
        },
        "peak_memory_bytes": environment.peak_memory_bytes(stream.compute.device),
        "warnings": [*scenario.warnings, *strategy.warnings],
        "environment": environment.describe_environment(stream.compute.device),
        "complete": True,
    }


def _describe_plan(stream: StreamPlan, plan: RunPlan) -> dict[str, Any]:
    """Return what was run: protocol, strategy, seeds, settings and code."""
    return {
        "protocol": stream.facts.PROTOCOL,
        "stream": _cut(stream),
        "strategy": plan.strategy.name,
        "label": plan.label,
        "seed": plan.seed,
        "seeds": {
            "run": plan.seed,
            "class_order": order_seed(stream.class_order),
            "data_order": plan.seeds.data,
            "initialisation": plan.seeds.init,
        },
        "recipe": plan.recipe.model_dump() if plan.recipe else None,
        "options": plan.options.model_dump(mode="json"),
        "host": describe_host(plan),
        "code": [
            {"kind": entry.kind, "name": entry.name, "file": file, "sha256": digest}
            for entry in _code(stream, plan)
            for file, digest in ((entry.file.name, entry.sha256), *entry.uses.items())
        ],
    }


def _describe_model(stream: StreamPlan, strategy: CLIPStrategy) -> dict[str, Any]:
    """Return the model, and how it was computed."""
    identity = strategy.model.identity
    return {
        "model": {
            **(asdict(identity) if identity else {}),
            "parameters": sum(p.numel() for p in strategy.model.parameters()),
            "trainable_parameters": strategy.trained_numbers(),
        },
        "precision": strategy.model.precision,
        "micro_batch": strategy.model.micro_batch,
        "deterministic": torch.are_deterministic_algorithms_enabled(),  # in force, not requested
        "compile_seconds": strategy.model.compile_seconds if stream.compute.compile else None,
    }


def _describe_data(stream: StreamPlan, scenario: Scenario) -> dict[str, Any]:
    """Return the data, prompt templates, class order and tasks."""
    return {
        "data": scenario.origin,
        "scored_on": "test images" if stream.settings.validation is None else "validation images",
        "templates": list(scenario.templates),
        "class_order": scenario.class_order,
        "tasks": [
            {
                **({"name": scenario.task_names[task]} if scenario.task_names else {}),
                "classes": [scenario.class_names[label] for label in classes],
                "train_samples": scenario.train_samples[task],
                "test_samples": scenario.test_samples[task],
            }
            for task, classes in enumerate(scenario.task_classes)
        ],
    }


def _cut(stream: StreamPlan) -> dict[str, Any]:
    """Return the settings of the stream that are not the defaults."""
    cut = {"base_classes": stream.settings.base_classes, **stream.settings.cut()}
    return {name: value for name, value in cut.items() if value is not None}


def _code(stream: StreamPlan, plan: RunPlan) -> list[Entry]:
    """Return the files that the run uses, and all plug-ins, since they could change anything."""
    used = (stream.entry, *stream.parts, *stream.probes, plan.strategy)
    entries = [*used, *(base.strategy for base in plan.bases)]
    return [*entries, *(entry for entry in stream.plugins if entry not in entries)]


def describe_host(plan: RunPlan) -> dict[str, Any] | None:
    """Return name and options of the strategy that it builds on; None if there is none."""
    base = plan.base
    if base is None:
        return None
    described = {"name": base.strategy.name, "options": base.options.model_dump(mode="json")}
    return {**described, "host": describe_host(base)} if base.base else described


def describe_merge(strategy: CLIPStrategy, record: RunRecord) -> dict[str, Any] | None:
    """Return a method's records of its tasks, and the tables of the weights it is compared with."""
    if not (strategy.records or record.compared):
        return None
    compared = {name: board.summary() for name, board in record.compared.items()}
    return {"tasks": strategy.records, "compared": compared}
