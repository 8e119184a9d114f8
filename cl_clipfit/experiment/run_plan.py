"""Plan the runs of a command: each strategy with each seed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cl_clipfit.clip.feature_classifier import FEATURES
from cl_clipfit.config.options import Options, Recipe, make_options
from cl_clipfit.config.parsing import Command, Spec, parse_command
from cl_clipfit.errors import UserError, nearest
from cl_clipfit.experiment.recipes import file_layers, make_settings
from cl_clipfit.experiment.stream_plan import StreamPlan, plan_stream
from cl_clipfit.registry import Entry, Registry
from cl_clipfit.runtime.determinism import Seeds

TOWERLESS = ("zero-shot", "linear-head")  # what a stream of features runs by default
_MOST_RUNS = 10_000  # of a command


@dataclass(frozen=True)
class RunPlan:
    """One strategy with one seed.

    Attributes:
        label: the strategy as the user named it, such as "full:ce_scope=task".
        strategy: the strategy.
        cls: its class.
        options: its options.
        recipe: how it trains; None if it does not.
        seed: seed of the draw of shots, and default of all other seeds.
        seeds: seeds of data order and initialisation.
        host: the strategy that it continues, if any; `recipe` is the host's then.
        host_options: the host's options.
        changed: the settings that differ from the method's defaults on the stream, by name.
    """

    label: str
    strategy: Entry
    cls: type[Any]
    options: Options
    recipe: Recipe | None
    seed: int = 0
    seeds: Seeds = field(default_factory=lambda: Seeds(0, 0))
    host: Entry | None = None
    host_options: Options | None = None
    changed: Mapping[str, Any] = field(default_factory=dict)

    def other_seeds(self) -> dict[str, int]:
        """Return, by option, the seeds that differ from the run's seed."""
        seeds = {"data_seed": self.seeds.data, "init_seed": self.seeds.init}
        return {option: seed for option, seed in seeds.items() if seed != self.seed}

    def settings(self) -> dict[str, Any]:
        """Return the recipe and all options, by name."""
        parts = (self.recipe, self.host_options, self.options)
        return {k: v for part in parts if part for k, v in part.model_dump(mode="json").items()}


@dataclass(frozen=True)
class ResolvedCommand:
    """A command with all names resolved and all defaults filled in.

    Attributes:
        command: the parsed command.
        registry: strategies and scenarios.
        stream: the stream of all runs.
        plans: each strategy with each seed.
    """

    command: Command
    registry: Registry
    stream: StreamPlan
    plans: list[RunPlan]


def resolve(command: Command, registry: Registry) -> ResolvedCommand:
    """Resolve a command: the stream, then every strategy with every seed.

    Raises:
        UserError: a name is unknown, or a setting does not fit.
    """
    stream = plan_stream(command, registry)
    if stream.model == FEATURES and "strategy" not in command.config.model_fields_set:
        command = parse_command(command.config, TOWERLESS)
    return ResolvedCommand(command, registry, stream, plan_runs(command, registry, stream))


def plan_runs(command: Command, registry: Registry, stream: StreamPlan) -> list[RunPlan]:
    """Resolve every strategy and seed, strategies first.

    Raises:
        UserError: a strategy or option is unknown, a plug-in cannot be imported, or there are too
            many runs.
    """
    config = command.config
    seeds = list(dict.fromkeys(config.seed))
    if (count := len(command.strategies) * len(seeds)) > _MOST_RUNS:
        raise UserError(
            f"--strategy and --seed ask for {count:,} runs, and a command has {_MOST_RUNS:,} at"
            " most: split it"
        )
    plans: list[RunPlan] = []
    for spec in command.strategies:
        plan = _fit_stream(_plan(command, registry, stream.data, spec), stream, command, spec)
        plan = replace(plan, changed=_changed(plan, command, registry, stream))
        for seed in seeds:
            data = seed if config.data_seed is None else config.data_seed
            init = seed if config.init_seed is None else config.init_seed
            plans.append(replace(plan, seed=seed, seeds=Seeds(data, init)))
    _check_assigned(command, stream, plans)
    return plans


def _changed(
    plan: RunPlan, command: Command, registry: Registry, stream: StreamPlan
) -> dict[str, Any]:
    """Return the settings of a plan that differ from its method's defaults on the stream."""
    unset = {"epochs": None, "batch_size": None, "lr": None, "recipe": "default"}
    bare = replace(command, config=command.config.model_copy(update=unset), assigned={})
    spec = Spec("", plan.strategy.name, {"host": plan.host.name} if plan.host else {})
    try:
        default = _fit_stream(_plan(bare, registry, stream.data, spec), stream, bare, spec)
    except UserError:  # an option without a default
        return plan.settings()
    before = default.settings()
    if plan.host:
        before["host"] = plan.strategy.options_class().model_fields["host"].default
    return {key: value for key, value in plan.settings().items() if value != before.get(key)}


def _check_assigned(command: Command, stream: StreamPlan, plans: list[RunPlan]) -> None:
    """Refuse `--set` for a name that no run of the command uses."""
    hosts = [plan.host.name for plan in plans if plan.host]
    members = [entry.name for entry in (*stream.parts, *stream.probes)]
    names = {stream.entry.name, *members, *(plan.strategy.name for plan in plans), *hosts}
    for name in command.assigned:
        if name not in names:
            raise UserError(f"--set {name}: not part of this run. {nearest(name, names)}")


def _fit_stream(plan: RunPlan, stream: StreamPlan, command: Command, spec: Spec) -> RunPlan:
    """Return the plan for its stream: one epoch with `--online`.

    Raises:
        UserError: the strategy needs a tower, but the stream holds features; or it needs the images
            more than once, but the stream is online.
    """
    if stream.model == FEATURES and plan.cls.towers:
        raise UserError(
            f"--strategy {plan.label}: it works on the {' and '.join(plan.cls.towers)} tower of a"
            f" model, and {stream.entry.name} has only features: try zero-shot or linear-head"
        )
    if stream.settings.online is None or plan.recipe is None:
        return plan
    if plan.host is not None:
        raise UserError(
            f"--strategy {plan.label}: it trains on a task's images again, and with --online they"
            " are seen once"
        )
    settings = [*command.settings_of(plan.strategy.name).items(), *spec.settings.items()]
    requested = [command.config.epochs, *(value for key, value in settings if key == "epochs")]
    if any(value not in (None, 1, "1") for value in requested):
        raise UserError("--online sees every image once: leave epochs out")
    once = {"epochs": 1, "warmup_epochs": 0}
    return replace(plan, recipe=plan.recipe.model_copy(update=once))


def _plan(command: Command, registry: Registry, scenario: Entry, spec: Spec) -> RunPlan:
    """Plan a strategy, without a seed."""
    name, config = spec.name, command.config
    entry, cls = registry.get("strategies", name), registry.strategy_class(name)
    given = command.settings_of(name)
    if cls.learning != "gradient":
        options = make_options(entry.options_class(), given | dict(spec.settings), name)
        return RunPlan(spec.text, entry, cls, options, None)
    if cls.needs_host:
        return _plan_continued(command, registry, scenario, spec)
    recipe, options = make_settings(config, scenario, entry, given, spec.settings)
    return RunPlan(spec.text, entry, cls, options, recipe)


def _plan_continued(command: Command, registry: Registry, scenario: Entry, spec: Spec) -> RunPlan:
    """Plan a strategy that continues a host; settings that it does not have go to the host."""
    name, config, label = spec.name, command.config, spec.text
    entry, cls = registry.get("strategies", name), registry.strategy_class(name)
    fields = entry.options_class().model_fields
    layers = (command.settings_of(name), spec.settings)
    of_host = [{k: v for k, v in given.items() if k not in fields} for given in layers]
    of_method = [{k: v for k, v in given.items() if k in fields} for given in layers]
    for where, layer, of_strategy in file_layers(config, scenario, entry):
        if of_strategy and (unknown := set(layer) - set(fields)):
            raise UserError(f"{where}: the recipe is the host's, leave out {min(unknown)}")
    _, options = make_settings(config, scenario, entry, *of_method)
    host, host_cls = find_host(registry, name, options.host)  # type: ignore[attr-defined]
    keys = {*fields, *host.options_class().model_fields, *Recipe.model_fields}
    for key in (key for given in of_host for key in given if key not in keys):
        raise UserError(
            f"{label}: neither {name} nor its host has an option '{key}'. {nearest(key, keys)}"
        )
    recipe, host_options = make_settings(
        config, scenario, host, command.settings_of(host.name) | of_host[0], of_host[1]
    )
    return RunPlan(
        label, entry, cls.over(host_cls), options, recipe, host=host, host_options=host_options
    )


def find_host(registry: Registry, name: str, host: str) -> tuple[Entry, type[Any]]:
    """Return the strategy that `name` continues, and its class.

    Raises:
        UserError: it is unknown, trains nothing, or continues another method itself.
    """
    entry, cls = registry.get("strategies", host), registry.strategy_class(host)
    if cls.learning != "gradient":
        raise UserError(f"{name}.host={host}: {host} trains nothing that could be continued")
    if cls.needs_host:
        raise UserError(f"{name}.host={host}: {host} continues another method itself")
    return entry, cls
