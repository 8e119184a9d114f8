"""From a command to the stream its runs share, every default filled in, every name checked."""

from dataclasses import dataclass
from pathlib import Path

import torch

from cl_clipfit.clip import MINI, parse_model
from cl_clipfit.clip.feature_classifier import FEATURES
from cl_clipfit.clip.precision import AUTO, resolve_precision
from cl_clipfit.config.command import RunConfig
from cl_clipfit.config.options import Options, make_options
from cl_clipfit.config.parsing import parse_settings, split_label
from cl_clipfit.errors import UserError, is_file
from cl_clipfit.experiment.scenario_file import BUNDLED_PROBES, ScenarioFacts, read_facts
from cl_clipfit.registry import Entry, Registry
from cl_clipfit.runtime.device import resolve_device


@dataclass(frozen=True)
class StreamPlan:
    """What all runs of a command share.

    Attributes:
        entry: the scenario.
        data: the scenario whose data it uses, and whose recipe counts: its one part, or itself.
        parts: the scenarios that it is made of.
        options: the scenario's own options.
        facts: its literals.
        tasks: number of tasks that was asked for, or None.
        tasks_file: YAML file of the tasks' classes, or None.
        base_classes: classes of the first task, or None.
        class_order: name or file of the order, or None.
        shots: training images a class, or None for all.
        validation: share of the training images scored in place of the test images, or None.
        limit: at most so many images a class, or None.
        online: images of an experience of a stream seen once, or None.
        blurry: share of each class's training images that arrive in other tasks, or None.
        templates: prompt templates in place of the data set's, or None.
        probes: scenarios whose test sets are scored zero-shot after every task.
        model: model name.
        device: where everything runs.
        precision: arithmetic of the towers; "auto" until the model is loaded.
        micro_batch: images that hold activations at once in training, or None for all, and fewer
            where memory runs out.
        recompute: keep the input of each block alone for the backward pass.
        compile: run the towers' blocks through `torch.compile` in training.
        deterministic: refuse what does not give the same bits again.
        on_nan: what to do where the loss is no number: "stop", or "skip" the step.
        plugins: files whose code was run, whether the runs use what is in them or not.
    """

    entry: Entry
    data: Entry
    parts: tuple[Entry, ...]
    options: Options
    facts: ScenarioFacts
    tasks: int | None
    tasks_file: Path | None
    base_classes: int | None
    class_order: str | None
    shots: int | None
    validation: float | None
    limit: int | None
    online: int | None
    blurry: float | None
    templates: tuple[str, ...] | None
    probes: tuple[Entry, ...]
    model: str
    device: torch.device
    precision: str
    micro_batch: int | None
    recompute: bool
    compile: bool
    deterministic: bool
    on_nan: str
    plugins: tuple[Entry, ...] = ()


def plan_stream(config: RunConfig, registry: Registry) -> StreamPlan:
    """Resolve the scenario, the model, the probes and the device.

    Raises:
        UserError: an unknown name or an option the scenario does not take.
    """
    name, inline = split_label(config.scenario, "--scenario")
    entry = registry.get("scenarios", name)
    own = parse_settings(config.set).get(name, {}) | inline
    options = make_options(entry.options_class(), own, name)
    parts = tuple(registry.get("scenarios", part) for part in options.parts())
    data = parts[0] if len(parts) == 1 else entry
    facts = read_facts(entry, data)
    model = config.model or facts.MODEL
    if (facts.MODEL == FEATURES) != (model == FEATURES):
        takes = "images, name a model" if model == FEATURES else "no model, leave --model out"
        raise UserError(f"--model {model}: {entry.name} takes {takes}")
    if config.template and model == FEATURES:
        raise UserError("--template: features come with their text encoded, leave the option out")
    for template in config.template or ():
        if template.count("{}") != 1:
            raise UserError(f"--template {template!r}: exactly one '{{}}' for the class name")
    probes = _probes(config, registry, entry, facts, model)
    _check_data_options(config, [data, *parts, *probes])
    by_file = config.tasks if isinstance(config.tasks, Path) else None
    if by_file is not None and not is_file(by_file):
        raise UserError(
            f"--tasks {by_file}: expected a number or a YAML file; there is no such file"
        )
    given = config.tasks if isinstance(config.tasks, int) else None
    device = resolve_device(config.device)
    return StreamPlan(
        plugins=tuple(registry.plugins),
        entry=entry,
        data=data,
        parts=parts,
        options=options,
        facts=facts,
        tasks=given,
        tasks_file=by_file,
        base_classes=config.base_classes,
        class_order=config.class_order or (None if by_file else facts.CLASS_ORDER),
        shots=config.shots,
        validation=config.validation,
        limit=config.limit,
        online=config.online,
        blurry=config.blurry,
        templates=tuple(config.template) if config.template else None,
        probes=probes,
        model=model,
        device=device,
        precision=_plan_precision(config.precision, device, model),
        micro_batch=None if config.micro_batch == "auto" else config.micro_batch,
        recompute=config.recompute,
        compile=config.compile,
        deterministic=config.deterministic,
        on_nan=config.on_nan,
    )


def _plan_precision(name: str, device: torch.device, model: str) -> str:
    """Refuse what cannot be before any data is read; `auto` needs the model, and waits for it."""
    if model != FEATURES:
        return name if name == AUTO else resolve_precision(name, device, None)
    if name == "bf16":
        raise UserError("--precision bf16: features come encoded, leave the option out")
    return "fp32"


def _check_data_options(config: RunConfig, used: list[Entry]) -> None:
    if all(entry.about.get("DOWNLOAD") == "none" for entry in used):
        given = {"--data-dir": config.data_dir, "--unverified-data": config.unverified_data}
        for option in (option for option, value in given.items() if value):
            raise UserError(f"{option}: {used[0].name} needs no data, leave the option out")
    if config.data_dir is not None and not is_file(config.data_dir, or_folder=True):
        raise UserError(f"--data-dir {config.data_dir}: there is no such file or folder")
    for option, file in (("--split", config.split), ("--class-names", config.class_names)):
        if file is not None and not is_file(file):
            raise UserError(f"{option} {file}: there is no such file")


def _probes(
    config: RunConfig, registry: Registry, entry: Entry, facts: ScenarioFacts, model: str
) -> tuple[Entry, ...]:
    names = config.probe
    if names is None:
        # Bundled probes show the mini CLIP's pre-training, which no other model had. And what is
        # chosen on validation images should not be chosen on the probes' test images.
        mini = model != FEATURES and parse_model(model)[0] == MINI
        wanted = () if config.validation is not None else facts.PROBES
        names = [p for p in wanted if p != entry.name and (mini or p not in BUNDLED_PROBES)]
    if names and model == FEATURES:
        raise UserError(f"--probe {names[0]}: features come without a model to score a probe with")
    return tuple(registry.get("scenarios", name) for name in dict.fromkeys(names))
