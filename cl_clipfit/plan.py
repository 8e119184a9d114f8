"""From a command to the runs it asks for, with every default filled in and every name checked."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, StrictStr, ValidationError

from cl_clipfit import __version__
from cl_clipfit.clip import DEFAULT_MODEL, MINI, ModelIdentity, parse_model
from cl_clipfit.config import (
    Count,
    Options,
    Recipe,
    RunConfig,
    explain,
    format_setting,
    make_options,
    parse_settings,
)
from cl_clipfit.data.source import DataRequest, Source
from cl_clipfit.environment import resolve_device
from cl_clipfit.errors import UserError, is_file, nearest
from cl_clipfit.recipes import make_settings
from cl_clipfit.registry import Entry, Registry
from cl_clipfit.runs import settings_hash

BUNDLED_PROBES = ("glyph-letters", "pretraining-shapes")


class ScenarioFacts(BaseModel):
    """The literals of a scenario file that steer a run.

    Attributes:
        TASKS: default number of tasks.
        CLASS_ORDER: default class order.
        MODEL: default model.
        PROBES: probes by default, with the mini CLIP.
        DOWNLOAD: "none" where the scenario brings its data and takes no `--data-dir`.
    """

    TASKS: Count = 1
    CLASS_ORDER: StrictStr = "natural"
    MODEL: StrictStr = DEFAULT_MODEL
    PROBES: tuple[StrictStr, ...] = BUNDLED_PROBES
    DOWNLOAD: StrictStr = ""


def read_facts(entry: Entry) -> ScenarioFacts:
    """Validate a scenario's literals.

    Raises:
        UserError: one of the wrong type; the message names the file.
    """
    try:
        return ScenarioFacts.model_validate(entry.about)
    except ValidationError as error:
        raise UserError(f"{entry.file.name}: {explain(error)}") from error


@dataclass(frozen=True)
class StreamPlan:
    """What all runs of a command share.

    Attributes:
        entry: the scenario.
        options: the scenario's own options.
        tasks: number of tasks.
        class_order: name of the order.
        shots: training images a class, or None for all.
        validation: share of the training images scored in place of the test images, or None.
        templates: prompt templates in place of the data set's, or None.
        probes: scenarios whose test sets are scored zero-shot after every task.
        model: model name.
        device: where everything runs.
    """

    entry: Entry
    options: Options
    tasks: int
    class_order: str
    shots: int | None
    validation: float | None
    templates: tuple[str, ...] | None
    probes: tuple[Entry, ...]
    model: str
    device: torch.device


@dataclass(frozen=True)
class RunPlan:
    """One strategy with one seed.

    Attributes:
        label: what the user called it, as "full:ce_scope=task".
        strategy: the strategy.
        cls: its class.
        options: its own options.
        recipe: how it trains; None where it does not.
        seed: seed of the draw of shots, of initialisation and of data order.
    """

    label: str
    strategy: Entry
    cls: type[Any]
    options: Options
    recipe: Recipe | None
    seed: int


def plan_stream(config: RunConfig, registry: Registry) -> StreamPlan:
    """Resolve the scenario, the model, the probes and the device.

    Raises:
        UserError: an unknown name or an option the scenario does not take.
    """
    entry = registry.get("scenarios", config.scenario)
    facts = read_facts(entry)
    if config.data_dir is not None:
        if facts.DOWNLOAD == "none":
            raise UserError(f"--data-dir: {entry.name} needs no data, leave the option out")
        if not is_file(config.data_dir, or_folder=True):
            raise UserError(f"--data-dir {config.data_dir}: there is no such file or folder")
    if config.unverified_data and facts.DOWNLOAD == "none":
        raise UserError(f"--unverified-data: {entry.name} needs no data, leave the option out")
    model = config.model or facts.MODEL
    probes = config.probe
    if probes is None:
        # What is chosen on validation images should not be chosen on the probes' test images.
        wanted = parse_model(model)[0] == MINI and config.validation is None
        probes = [p for p in facts.PROBES if p != entry.name] if wanted else []
    for template in config.template or ():
        if template.count("{}") != 1:
            raise UserError(f"--template {template!r}: exactly one '{{}}' for the class name")
    settings = parse_settings(config.set)
    known = {config.scenario, *(split_label(label)[0] for label in config.strategy)}
    for name in settings:
        if name not in known:
            raise UserError(f"--set {name}: not part of this run. {nearest(name, known)}")
    return StreamPlan(
        entry=entry,
        options=make_options(entry.options_class(), settings.get(entry.name, {}), entry.name),
        tasks=config.tasks or facts.TASKS,
        class_order=config.class_order or facts.CLASS_ORDER,
        shots=config.shots,
        validation=config.validation,
        templates=tuple(config.template) if config.template else None,
        probes=tuple(registry.get("scenarios", name) for name in dict.fromkeys(probes)),
        model=model,
        device=resolve_device(config.device),
    )


def split_label(label: str) -> tuple[str, dict[str, Any]]:
    """Split `NAME[:key=value,...]`, a strategy with settings of its own in one command.

    Raises:
        UserError: settings of another form.

    Example:
        >>> split_label("full:ce_scope=task,lr=1e-4")
        ('full', {'ce_scope': 'task', 'lr': '1e-4'})
        >>> split_label("clipfit:vocabulary=[cat, dog],kd=cosine")
        ('clipfit', {'vocabulary': ['cat', 'dog'], 'kd': 'cosine'})
    """
    name, colon, text = label.strip().partition(":")
    settings: dict[str, Any] = {}
    for part in re.split(r",(?![^\[]*\])", text) if colon else ():  # not at commas in brackets
        key, equals, value = part.strip().partition("=")
        if not (name and equals and key.isidentifier()):
            raise UserError(
                f"--strategy {label}: expected NAME:key=value,key=value, as in clipfit:kd_weight=2"
            )
        settings |= parse_settings([f"{name}.{key}={value}"]).get(name, {})
    return name, settings


def plan_runs(config: RunConfig, registry: Registry, scenario: Entry) -> list[RunPlan]:
    """Resolve every strategy and seed, strategies first.

    Raises:
        UserError: an unknown strategy or option, or a plug-in that fails to import.
    """
    settings = parse_settings(config.set)
    plans = []
    for label in dict.fromkeys(config.strategy):
        name, inline = split_label(label)
        entry = registry.get("strategies", name)
        cls = registry.strategy_class(name)
        own = settings.get(name, {})
        recipe: Recipe | None = None
        if cls.trains and not cls.frozen:
            recipe, options = make_settings(config, scenario, entry, own, inline)
        else:
            options = make_options(entry.options_class(), own | inline, name)
        seeds = dict.fromkeys(config.seed)
        plans += [RunPlan(label, entry, cls, options, recipe, seed) for seed in seeds]
    return plans


def load_source(entry: Entry, options: Options, request: DataRequest) -> Source:
    """Call a scenario's `load`.

    Raises:
        UserError: it has none, it fails, or it returns something else than a `Source`.
    """
    load = getattr(entry.load(), "load", None)
    if not callable(load):
        raise UserError(f"{entry.file.name}: a scenario needs a function load(options, request)")
    try:
        source = load(options, request)
    except UserError:
        raise
    except Exception as error:  # a scenario's own code may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"scenario {entry.name} cannot load its data: {reason}") from error
    if not isinstance(source, Source):
        raise UserError(f"{entry.file.name}: load() must return a cl_clipfit.Source")
    return source


def run_digest(
    stream: StreamPlan,
    run: RunPlan,
    precision: str,
    identity: ModelIdentity,
    data: Sequence[str],
) -> str:
    """Return the hash that names the run's folder: over everything that changes numbers.

    The bytes of the strategy's, scenario's and probes' files count, and all images and labels: an
    edited method is run anew, and so is one on changed data.

    Args:
        stream: what all runs of the command share.
        run: the run.
        precision: arithmetic of the model.
        identity: the model's weights.
        data: hash of the stream's data set, then of each probe's.
    """
    return settings_hash(
        {
            "version": __version__,
            "scenario": [stream.entry.name, stream.entry.sha256, stream.options.model_dump()],
            "data": list(data),
            "tasks": stream.tasks,
            "class_order": stream.class_order,
            "shots": stream.shots,
            "validation": stream.validation,
            "templates": stream.templates,
            "probes": [[probe.name, probe.sha256] for probe in stream.probes],
            "strategy": [run.strategy.name, run.strategy.sha256, run.options.model_dump()],
            "recipe": run.recipe.model_dump() if run.recipe else None,
            "seed": run.seed,
            "model": [identity.architecture, identity.pretrained, identity.weights_sha256],
            "device": stream.device.type,
            "precision": precision,
        }
    )


def config_of(stream: StreamPlan, run: RunPlan, config: RunConfig) -> dict[str, Any]:
    """Return `config.yaml`: the command that repeats this one run, defaults filled in."""
    recipe = run.recipe.model_dump() if run.recipe else {}
    options = {"epochs", "batch_size", "lr"}
    own = [
        (stream.entry.name, stream.options.model_dump(mode="json")),
        (run.strategy.name, run.options.model_dump(mode="json")),
        (run.strategy.name, {k: v for k, v in recipe.items() if k not in options}),
    ]
    values = {
        "scenario": stream.entry.name,
        "strategy": [run.strategy.name],
        "model": stream.model,
        "seed": [run.seed],
        **{key: recipe.get(key) for key in sorted(options)},
        "shots": stream.shots,
        "validation": stream.validation,
        "template": list(stream.templates) if stream.templates else None,
        "tasks": stream.tasks,
        "class_order": stream.class_order,
        "data_dir": str(config.data_dir.resolve()) if config.data_dir else None,
        "unverified_data": config.unverified_data or None,
        "device": stream.device.type,
        "precision": config.precision,
        "set": [f"{n}.{key}={format_setting(v)}" for n, vs in own for key, v in vs.items()],
        "plugin": [str(file.resolve()) for file in config.plugin],
        "probe": [probe.name for probe in stream.probes],
    }
    return {key: value for key, value in values.items() if value is not None}
