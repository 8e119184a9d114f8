"""From a command to the runs it asks for: each strategy with each seed, and what names a run."""

from dataclasses import dataclass, replace
from typing import Any

from cl_clipfit.clip.feature_classifier import FEATURES
from cl_clipfit.config.command import RunConfig
from cl_clipfit.config.options import Options, Recipe, make_options
from cl_clipfit.config.parsing import parse_settings, split_label
from cl_clipfit.errors import UserError, nearest
from cl_clipfit.experiment.recipes import file_layers, make_settings
from cl_clipfit.experiment.stream_plan import StreamPlan
from cl_clipfit.registry import Entry, Registry

_MOST_RUNS = 10_000  # of a command


@dataclass(frozen=True)
class RunPlan:
    """One strategy with one seed.

    Attributes:
        label: what the user called it, as "full:ce_scope=task".
        strategy: the strategy.
        cls: its class.
        options: its own options.
        recipe: how it trains; None where it does not.
        seed: seed of the draw of shots, and of all else where nothing else is said.
        host: the strategy that it continues, if it continues one; `recipe` is the host's then.
        host_options: the host's own options.
        data_seed: seed of data order, crops and other draws of training; None is `seed`.
        init_seed: seed of the values that new parameters start at; None is `seed`.
    """

    label: str
    strategy: Entry
    cls: type[Any]
    options: Options
    recipe: Recipe | None
    seed: int = 0
    host: Entry | None = None
    host_options: Options | None = None
    data_seed: int | None = None
    init_seed: int | None = None

    @property
    def data_order(self) -> int:
        """Return the seed of data order, crops and other draws of training."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def initialisation(self) -> int:
        """Return the seed of the values that new parameters start at."""
        return self.seed if self.init_seed is None else self.init_seed

    def other_seeds(self) -> dict[str, int]:
        """Return, by option, the seeds that are not the run's own."""
        seeds = {"data_seed": self.data_order, "init_seed": self.initialisation}
        return {option: seed for option, seed in seeds.items() if seed != self.seed}


def plan_runs(config: RunConfig, registry: Registry, stream: StreamPlan) -> list[RunPlan]:
    """Resolve every strategy and seed, strategies first.

    Raises:
        UserError: an unknown strategy or option, a plug-in that fails to import, or too many runs.
    """
    count = len(set(config.strategy)) * len(set(config.seed))
    if count > _MOST_RUNS:
        raise UserError(
            f"--strategy and --seed ask for {count:,} runs, and a command has {_MOST_RUNS:,} at"
            " most: split it"
        )
    settings = parse_settings(config.set)
    plans, scenario = [], stream.data
    for label in dict.fromkeys(config.strategy):
        plan = _fit_stream(_plan(config, registry, scenario, label, settings), stream, config)
        plan = replace(plan, data_seed=config.data_seed, init_seed=config.init_seed)
        plans += [replace(plan, seed=seed) for seed in dict.fromkeys(config.seed)]
    hosts = [plan.host.name for plan in plans if plan.host]
    others = [entry.name for entry in (*stream.parts, *stream.probes)]
    known = {stream.entry.name, *others, *(plan.strategy.name for plan in plans), *hosts}
    for name in settings:
        if name not in known:
            raise UserError(f"--set {name}: not part of this run. {nearest(name, known)}")
    return plans


def _fit_stream(plan: RunPlan, stream: StreamPlan, config: RunConfig) -> RunPlan:
    """Refuse what a stream of features or one seen once cannot do; see a stream once where asked.

    Raises:
        UserError: the strategy needs a tower, or its images more than once.
    """
    if stream.model == FEATURES and plan.cls.towers:
        raise UserError(
            f"--strategy {plan.label}: it works on the {' and '.join(plan.cls.towers)} tower of a"
            f" model, and {stream.entry.name} has features alone: try zero-shot or linear-head"
        )
    if stream.online is None or plan.recipe is None:
        return plan
    if plan.host is not None:
        raise UserError(
            f"--strategy {plan.label}: it trains on a task's images again, and with --online they"
            " are seen once"
        )
    settings = [*parse_settings(config.set).get(plan.strategy.name, {}).items()]
    settings += split_label(plan.label)[1].items()
    asked = [config.epochs, *(value for key, value in settings if key == "epochs")]
    if any(value not in (None, 1, "1") for value in asked):
        raise UserError("--online sees every image once: leave epochs out")
    once = {"epochs": 1, "warmup_epochs": 0}
    return replace(plan, recipe=plan.recipe.model_copy(update=once))


def _plan(
    config: RunConfig, registry: Registry, scenario: Entry, label: str, settings: dict[str, Any]
) -> RunPlan:
    name, inline = split_label(label)
    entry, cls = registry.get("strategies", name), registry.strategy_class(name)
    own = settings.get(name, {})
    if not cls.trains or cls.frozen:
        options = make_options(entry.options_class(), own | inline, name)
        return RunPlan(label, entry, cls, options, None)
    if not cls.needs_host:
        recipe, options = make_settings(config, scenario, entry, own, inline)
        return RunPlan(label, entry, cls, options, recipe)
    fields = entry.options_class().model_fields
    # What the method does not know of its own is said of its host.
    theirs = [{k: v for k, v in given.items() if k not in fields} for given in (own, inline)]
    mine = [{k: v for k, v in given.items() if k in fields} for given in (own, inline)]
    for where, layer, of_strategy in file_layers(config, scenario, entry):
        if of_strategy and (strange := set(layer) - set(fields)):
            raise UserError(f"{where}: the recipe is the host's, leave out {min(strange)}")
    _, options = make_settings(config, scenario, entry, *mine)
    host, host_cls = find_host(registry, name, options.host)  # type: ignore[attr-defined]
    known = {*fields, *host.options_class().model_fields, *Recipe.model_fields}
    for key in (key for given in theirs for key in given if key not in known):
        raise UserError(
            f"{label}: neither {name} nor its host {host.name} has an option '{key}'."
            f" {nearest(key, known)}"
        )
    recipe, host_options = make_settings(
        config, scenario, host, settings.get(host.name, {}) | theirs[0], theirs[1]
    )
    made = cls.over(host_cls)
    return RunPlan(label, entry, made, options, recipe, host=host, host_options=host_options)


def find_host(registry: Registry, name: str, host: str) -> tuple[Entry, type[Any]]:
    """Return the strategy that `name` continues, and its class.

    Raises:
        UserError: it is unknown, trains nothing or continues another one itself.
    """
    entry, cls = registry.get("strategies", host), registry.strategy_class(host)
    if cls.frozen or not cls.trains:
        raise UserError(f"{name}.host={host}: {host} trains nothing that could be continued")
    if cls.needs_host:
        raise UserError(f"{name}.host={host}: {host} continues another method itself")
    return entry, cls
