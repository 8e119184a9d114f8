"""Plan the stream that the runs of a command share: fill in defaults and check names."""

from dataclasses import dataclass
from pathlib import Path

import torch

from cl_clipfit.clip import MINI, parse_model
from cl_clipfit.clip.feature_classifier import FEATURES
from cl_clipfit.clip.precision import AUTO, resolve_precision
from cl_clipfit.config.command import (
    ComputeSettings,
    DataSettings,
    RunConfig,
    StreamSettings,
)
from cl_clipfit.config.options import Options, make_options
from cl_clipfit.config.parsing import Command
from cl_clipfit.errors import UserError
from cl_clipfit.experiment.names import check_files, check_tasks_file
from cl_clipfit.experiment.scenario_file import BUNDLED_PROBES, ScenarioFacts, read_facts
from cl_clipfit.registry import Entry, Registry
from cl_clipfit.runtime.device import resolve_device


@dataclass(frozen=True)
class Compute:
    """How to compute, resolved; `ComputeSettings` holds what was requested.

    Attributes:
        device: where everything runs.
        precision: arithmetic of the towers; "auto" until the model is loaded.
        micro_batch: images that hold activations at once in training; None for all of a batch, and
            fewer if memory runs out.
        recompute: keep only the input of each block for the backward pass.
        compile: run the towers' blocks through `torch.compile` in training.
        deterministic: refuse operations that are not reproducible bit for bit.
    """

    device: torch.device
    precision: str = "fp32"
    micro_batch: int | None = None
    recompute: bool = False
    compile: bool = False
    deterministic: bool = False


@dataclass(frozen=True)
class StreamPlan:
    """What all runs of a command share.

    Attributes:
        settings: the stream as requested.
        data_settings: where its data are.
        entry: the scenario.
        data: the scenario whose data and recipe it uses: its only part, or itself.
        parts: the scenarios that it consists of.
        options: the scenario's options.
        facts: its literals.
        tasks: number of tasks, or None until the data are read; or a YAML file of their classes.
        class_order: name or file of the order, or None.
        probes: scenarios whose test sets are scored zero-shot after every task.
        model: model name.
        compute: how the machine computes.
        on_nan: on a NaN or infinite loss: "stop", or "skip" the step.
        keeps_predictions: whether a run's folder holds its predictions for the test images.
        plugins: plug-in files that were imported, including unused ones.
    """

    settings: StreamSettings
    data_settings: DataSettings
    entry: Entry
    data: Entry
    parts: tuple[Entry, ...]
    options: Options
    facts: ScenarioFacts
    tasks: int | Path | None
    class_order: str | None
    probes: tuple[Entry, ...]
    model: str
    compute: Compute
    on_nan: str = "stop"
    keeps_predictions: bool = True
    plugins: tuple[Entry, ...] = ()

    def shots_seed(self, seed: int) -> int:
        """Return the seed of the draw of shots; 0 if the stream has all images."""
        return 0 if self.settings.shots is None else seed


def plan_stream(command: Command, registry: Registry) -> StreamPlan:
    """Resolve the scenario, the model, the probes and the device.

    Raises:
        UserError: a name is unknown, or the scenario does not take an option.
    """
    config, name = command.config, command.scenario.name
    entry = registry.get("scenarios", name)
    given = command.settings_of(name) | dict(command.scenario.settings)
    options = make_options(entry.options_class(), given, name)
    parts = tuple(registry.get("scenarios", member) for member in options.parts())
    data = parts[0] if len(parts) == 1 else entry
    facts = read_facts(entry, data)
    model = _choose_model(config, entry, facts)
    probes = _choose_probes(config, registry, entry, facts, model)
    _check_data_options(config, [data, *parts, *probes])
    if isinstance(config.tasks, Path):
        check_tasks_file(config.tasks)
    default_order = None if isinstance(config.tasks, Path) else facts.CLASS_ORDER
    return StreamPlan(
        settings=config.group(StreamSettings),
        data_settings=config.group(DataSettings),
        entry=entry,
        data=data,
        parts=parts,
        options=options,
        facts=facts,
        tasks=config.tasks,
        class_order=config.class_order[0] if config.class_order else default_order,
        probes=probes,
        model=model,
        compute=_plan_compute(config, model),
        on_nan=config.on_nan,
        keeps_predictions=not config.no_predictions,
        plugins=tuple(registry.plugins),
    )


def _choose_model(config: RunConfig, entry: Entry, facts: ScenarioFacts) -> str:
    """Return the model's name; refuse one that does not suit the scenario's data."""
    model = config.model or facts.MODEL
    if (facts.MODEL == FEATURES) != (model == FEATURES):
        takes = "images, name a model" if model == FEATURES else "no model, leave --model out"
        raise UserError(f"--model {model}: {entry.name} takes {takes}")
    if config.template and model == FEATURES:
        raise UserError("--template: features come with their text encoded, leave the option out")
    for template in config.template or ():
        if template.count("{}") != 1:
            raise UserError(f"--template {template!r}: exactly one '{{}}' for the class name")
    return model


def _plan_compute(settings: ComputeSettings, model: str) -> Compute:
    """Resolve the device; refuse an impossible precision before any data is read."""
    device, precision = resolve_device(settings.device), settings.precision
    if model == FEATURES and precision == "bf16":
        raise UserError("--precision bf16: features come encoded, leave the option out")
    if model != FEATURES and precision != AUTO:
        resolve_precision(precision, device, None)
    return Compute(
        device=device,
        precision="fp32" if model == FEATURES else precision,  # `auto` waits for the model
        micro_batch=None if settings.micro_batch == "auto" else settings.micro_batch,
        recompute=settings.recompute,
        compile=settings.compile,
        deterministic=settings.deterministic,
    )


def _check_data_options(settings: DataSettings, used: list[Entry]) -> None:
    if all(entry.about.get("DOWNLOAD") == "none" for entry in used):
        given = {"--data-dir": settings.data_dir, "--unverified-data": settings.unverified_data}
        for option in (option for option, value in given.items() if value):
            folder = "; for images of your own: --scenario folder" if option == "--data-dir" else ""
            raise UserError(f"{option}: {used[0].name} needs no data, leave the option out{folder}")
    check_files(settings)


def _choose_probes(
    config: RunConfig, registry: Registry, entry: Entry, facts: ScenarioFacts, model: str
) -> tuple[Entry, ...]:
    names = config.probe
    if names is None:
        # Bundled probes test what the mini CLIP was pretrained on, so only it is scored on them.
        # With --validation there are none, so that nothing is chosen on their test images.
        mini = model != FEATURES and parse_model(model)[0] == MINI
        defaults = () if config.validation is not None else facts.PROBES
        names = [p for p in defaults if p != entry.name and (mini or p not in BUNDLED_PROBES)]
    if names and model == FEATURES:
        raise UserError(f"--probe {names[0]}: features come without a model to score a probe with")
    return tuple(registry.get("scenarios", name) for name in dict.fromkeys(names))
