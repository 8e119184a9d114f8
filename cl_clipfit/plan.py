"""From a command to the stream its runs share, every default filled in, every name checked."""

from dataclasses import dataclass

import torch
from pydantic import BaseModel, StrictStr, ValidationError

from cl_clipfit.clip import DEFAULT_MODEL, MINI, parse_model
from cl_clipfit.config import (
    Count,
    Options,
    RunConfig,
    explain,
    make_options,
    parse_settings,
)
from cl_clipfit.data.source import DataRequest, Source
from cl_clipfit.environment import resolve_device
from cl_clipfit.errors import UserError, is_file
from cl_clipfit.registry import Entry, Registry

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
