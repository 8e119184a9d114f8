"""From a command to the runs it asks for, with every default filled in and every name checked."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cl_clipfit import __version__
from cl_clipfit.clip import DEFAULT_MODEL, MINI, ModelIdentity, parse_model
from cl_clipfit.config import Options, Recipe, RunConfig, make_options, parse_settings
from cl_clipfit.data.source import Source
from cl_clipfit.environment import resolve_device
from cl_clipfit.errors import UserError, nearest
from cl_clipfit.registry import Entry, Registry
from cl_clipfit.runs import settings_hash


@dataclass(frozen=True)
class StreamPlan:
    """What all runs of a command share.

    Attributes:
        entry: the scenario.
        options: the scenario's own options.
        tasks: number of tasks.
        class_order: name of the order.
        shots: training images a class, or None for all.
        probes: scenarios whose test sets are scored zero-shot after every task.
        model: model name.
        device: where everything runs.
    """

    entry: Entry
    options: Options
    tasks: int
    class_order: str
    shots: int | None
    probes: tuple[str, ...]
    model: str
    device: torch.device


@dataclass(frozen=True)
class RunPlan:
    """One strategy with one seed.

    Attributes:
        strategy: the strategy.
        cls: its class.
        options: its own options.
        recipe: how it trains; None where it does not.
        seed: seed of the draw of shots, of initialisation and of data order.
    """

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
    about = entry.about
    if config.data_dir is not None:
        if about.get("DOWNLOAD") == "none":
            raise UserError(f"--data-dir: {entry.name} needs no data, leave the option out")
        if not config.data_dir.exists():
            raise UserError(f"--data-dir {config.data_dir}: there is no such file or folder")
    model = config.model or about.get("MODEL", DEFAULT_MODEL)
    is_mini = parse_model(model)[0] == MINI
    probes = config.probe
    if probes is None:
        probes = list(about.get("PROBES", ())) if is_mini else []
    for name in probes:
        registry.get("scenarios", name)
    settings = parse_settings(config.set)
    known = {config.scenario, *config.strategy}
    for name in settings:
        if name not in known:
            raise UserError(f"--set {name}: not part of this run. {nearest(name, known)}")
    return StreamPlan(
        entry=entry,
        options=make_options(entry.options_class(), settings.get(entry.name, {}), entry.name),
        tasks=config.tasks or int(about.get("TASKS", 1)),
        class_order=config.class_order or about.get("CLASS_ORDER", "natural"),
        shots=config.shots,
        probes=tuple(dict.fromkeys(probes)),
        model=model,
        device=resolve_device(config.device),
    )


def plan_runs(config: RunConfig, registry: Registry, scenario: Entry) -> list[RunPlan]:
    """Resolve every strategy and seed, strategies first.

    Raises:
        UserError: an unknown strategy or option, or a plug-in that fails to import.
    """
    settings = parse_settings(config.set)
    plans = []
    for name in dict.fromkeys(config.strategy):
        entry = registry.get("strategies", name)
        cls = registry.strategy_class(name)
        options = make_options(entry.options_class(), settings.get(name, {}), name)
        recipe = None if cls.frozen else make_recipe(config, scenario, entry)
        plans += [RunPlan(entry, cls, options, recipe, seed) for seed in dict.fromkeys(config.seed)]
    return plans


def make_recipe(config: RunConfig, scenario: Entry, strategy: Entry) -> Recipe:
    """Layer the recipe: defaults, the scenario's, the strategy's for it, the command's."""
    given = {"epochs": config.epochs, "batch_size": config.batch_size, "lr": config.lr}
    return Recipe(
        **{
            **scenario.about.get("RECIPE", {}),
            **strategy.about.get("RECIPES", {}).get(scenario.name, {}),
            **{key: value for key, value in given.items() if value is not None},
        }
    )


def load_source(entry: Entry, options: Options, data_dir: Path | None) -> Source:
    """Call a scenario's `load`.

    Raises:
        UserError: it has none, it fails, or it returns something else than a `Source`.
    """
    load = getattr(entry.load(), "load", None)
    if not callable(load):
        raise UserError(f"{entry.file.name}: a scenario needs a function load(options, data_dir)")
    try:
        source = load(options, data_dir)
    except UserError:
        raise
    except Exception as error:  # a scenario's own code may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"scenario {entry.name} cannot load its data: {reason}") from error
    if not isinstance(source, Source):
        raise UserError(f"{entry.file.name}: load() must return a cl_clipfit.Source")
    return source


def settings_of(
    stream: StreamPlan, run: RunPlan, config: RunConfig, identity: ModelIdentity
) -> dict[str, Any]:
    """Everything that changes a run's numbers, for its hash.

    The bytes of the strategy's and scenario's files count: an edited method is run anew.
    """
    return {
        "version": __version__,
        "scenario": [stream.entry.name, stream.entry.sha256, stream.options.model_dump()],
        "data": str(config.data_dir.resolve()) if config.data_dir else None,
        "tasks": stream.tasks,
        "class_order": stream.class_order,
        "shots": stream.shots,
        "probes": stream.probes,
        "strategy": [run.strategy.name, run.strategy.sha256, run.options.model_dump()],
        "recipe": run.recipe.model_dump() if run.recipe else None,
        "seed": run.seed,
        "model": [identity.architecture, identity.pretrained, identity.weights_sha256],
        "device": stream.device.type,
        "precision": config.precision,
    }


def run_digest(stream: StreamPlan, run: RunPlan, config: RunConfig, identity: ModelIdentity) -> str:
    """Return the hash that names the run's folder."""
    return settings_hash(settings_of(stream, run, config, identity))


def config_of(stream: StreamPlan, run: RunPlan, config: RunConfig) -> dict[str, Any]:
    """Return `config.yaml`: the command that repeats this one run, defaults filled in."""
    recipe = run.recipe.model_dump() if run.recipe else {}
    own = {f"{stream.entry.name}.": stream.options, f"{run.strategy.name}.": run.options}
    values = {
        "scenario": stream.entry.name,
        "strategy": [run.strategy.name],
        "model": stream.model,
        "seed": [run.seed],
        "epochs": recipe.get("epochs"),
        "batch_size": recipe.get("batch_size"),
        "lr": recipe.get("lr"),
        "shots": stream.shots,
        "tasks": stream.tasks,
        "class_order": stream.class_order,
        "data_dir": str(config.data_dir) if config.data_dir else None,
        "device": stream.device.type,
        "precision": config.precision,
        "set": [
            f"{prefix}{key}={json.dumps(value)}"
            for prefix, options in own.items()
            for key, value in options.model_dump(mode="json").items()
        ],
        "plugin": [str(file) for file in config.plugin],
        "probe": list(stream.probes),
    }
    return {key: value for key, value in values.items() if value is not None}
