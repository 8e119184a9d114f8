"""Plan the runs of a command: each strategy with each seed."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from cl_clipfit.clip.feature_classifier import FEATURES
from cl_clipfit.config.command import RunConfig
from cl_clipfit.config.options import Options, Recipe, make_options
from cl_clipfit.config.parsing import Command, Spec, parse_command
from cl_clipfit.errors import UserError, nearest
from cl_clipfit.experiment.names import settled
from cl_clipfit.experiment.recipes import adapted, file_layers, make_settings
from cl_clipfit.experiment.stream_plan import StreamPlan, plan_stream
from cl_clipfit.registry import Entry, Registry
from cl_clipfit.runtime.determinism import Seeds

TOWERLESS = (  # what a stream of features runs by default
    "zero-shot", "linear-head", "lda", "stack:base=zero-shot",
)  # fmt: skip
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
        base: the strategy that it trains, if it builds on another; `recipe` is that one's then.
        changed: the settings that differ from the method's defaults on the stream, by name.
    """

    label: str
    strategy: Entry
    cls: type[Any]
    options: Options
    recipe: Recipe | None
    seed: int = 0
    seeds: Seeds = field(default_factory=lambda: Seeds(0, 0))
    base: "RunPlan | None" = None
    changed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reads_train_images_as_they_are(self) -> bool:
        """Whether it learns from images that are not augmented."""
        if self.recipe is None:
            return bool(self.cls.learning == "closed-form")
        return self.recipe.augmentation == "none"

    def base_options(self) -> dict[str, Options]:
        """Return the options of the strategies below it, by the argument that takes them."""
        return {f"{above.cls.base_option}_options": below.options for above, below in pairs(self)}

    def other_seeds(self) -> dict[str, int]:
        """Return, by option, the seeds that differ from the run's seed."""
        seeds = {"data_seed": self.seeds.data, "init_seed": self.seeds.init}
        return {option: seed for option, seed in seeds.items() if seed != self.seed}

    def settings(self) -> dict[str, Any]:
        """Return the recipe and all options, by name."""
        below = self.base.settings() if self.base else {}
        parts = (self.recipe, self.options)
        return below | {
            k: v for part in parts if part for k, v in part.model_dump(mode="json").items()
        }

    def adapted_to(self, images: float) -> "RunPlan":
        """Return the plan for tasks of so many training images; see `recipes.adapted`."""
        if self.recipe is None:
            return self
        base = self.base.adapted_to(images) if self.base else None
        return replace(self, recipe=adapted(self.recipe, images), base=base)

    @property
    def repeats_images(self) -> bool:
        """Whether it trains on a task's images again after the task."""
        return any(plan.cls.repeats_images for plan in (self, *self.bases))

    @property
    def exemplars(self) -> str | int:
        """What it uses of the images of old tasks: "no", "features", how many, or "all"."""
        for plan in (self, *self.bases):
            declared = plan.strategy.about.get("EXEMPLARS", "no")
            declared = getattr(plan.options, declared, declared)  # an option or a property
            if declared not in ("no", 0):
                return declared if isinstance(declared, int) else str(declared)
        return "no"

    @property
    def bases(self) -> list["RunPlan"]:
        """The strategies below it, the nearest first."""
        return [self.base, *self.base.bases] if self.base else []


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
    for given in command.strategies:
        spec = settled(given, registry.get("strategies", given.name))
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
    below = {p.cls.base_option: b.strategy.name for p, b in pairs(plan)}
    spec = Spec("", plan.strategy.name, below)
    try:
        default = _fit_stream(_plan(bare, registry, stream.data, spec), stream, bare, spec)
    except UserError:  # an option without a default
        return plan.settings()
    before = default.settings()
    for above, _ in pairs(plan):
        option = above.cls.base_option
        before[option] = above.strategy.options_class().model_fields[option].default
    return {key: value for key, value in plan.settings().items() if value != before.get(key)}


def _check_assigned(command: Command, stream: StreamPlan, plans: list[RunPlan]) -> None:
    """Refuse `--set` for a name that no run of the command uses."""
    bases = [base.strategy.name for plan in plans for base in plan.bases]
    members = [entry.name for entry in (*stream.parts, *stream.probes)]
    names = {stream.entry.name, *members, *(plan.strategy.name for plan in plans), *bases}
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
            f" model, and {stream.entry.name} has only features: try lda or stack:base=zero-shot"
        )
    if stream.settings.online is None or plan.recipe is None:
        return plan
    if plan.repeats_images:
        raise UserError(
            f"--strategy {plan.label}: it trains on a task's images again, and with --online they"
            " are seen once"
        )
    if plan.cls.reach != "task":
        raise UserError(
            f"--strategy {plan.label}: it trains on images of several tasks at once, and with"
            " --online each is seen once, in its task"
        )
    settings = [*command.settings_of(plan.strategy.name).items(), *spec.settings.items()]
    requested = [command.config.epochs, *(value for key, value in settings if key == "epochs")]
    if any(value not in (None, 1, "1") for value in requested):
        raise UserError("--online sees every image once: leave epochs out")
    once = {"epochs": 1, "warmup_epochs": 0}
    return replace(plan, recipe=plan.recipe.model_copy(update=once))


def _plan(
    command: Command, registry: Registry, scenario: Entry, spec: Spec,
    passed: Mapping[str, Any] | None = None,
) -> RunPlan:  # fmt: skip
    """Plan a strategy, without a seed.

    Args:
        command: the parsed command.
        registry: strategies and scenarios.
        scenario: the stream.
        spec: name and settings of the strategy.
        passed: settings that `--set` gives to a strategy that builds on it.
    """
    name, config = spec.name, command.config
    entry, cls = registry.get("strategies", name), registry.strategy_class(name)
    given = command.settings_of(name) | dict(passed or {})
    if cls.base_option and _builds(entry, cls.base_option, given | dict(spec.settings)):
        return _plan_over(command, registry, scenario, spec, given)
    if cls.learning != "gradient":
        options = _options_of(config, scenario, entry, given | dict(spec.settings))
        return RunPlan(spec.text, entry, cls, options, None)
    recipe, options = make_settings(config, scenario, entry, given, spec.settings)
    return RunPlan(spec.text, entry, cls, options, recipe)


def _builds(entry: Entry, option: str, chosen: Mapping[str, Any]) -> bool:
    """Return whether an option names a method to build on; where that is optional, "none" does not.

    Args:
        entry: the strategy.
        option: its `base_option`.
        chosen: what is not left at its default.
    """
    default = entry.options_class().model_fields[option].default
    return not (default == "none" == chosen.get(option, default))


def _options_of(
    config: RunConfig, scenario: Entry, entry: Entry, given: Mapping[str, Any]
) -> Options:
    """Return the options of a strategy that has no recipe: those of its file, then those given."""
    published = config.recipe == "published" and "PUBLISHED" in entry.about
    layers = file_layers(config, scenario, entry) if published else []
    declared = {key: value for _, layer, _ in layers for key, value in layer.items()}
    return make_options(entry.options_class(), {**declared, **given}, entry.name)


def _plan_over(
    command: Command, registry: Registry, scenario: Entry, spec: Spec, given: Mapping[str, Any]
) -> RunPlan:
    """Plan a strategy that builds on another; settings that it does not have go to that one."""
    entry, cls = registry.get("strategies", spec.name), registry.strategy_class(spec.name)
    fields = entry.options_class().model_fields
    layers = (given, spec.settings)
    passed, inline = [{k: v for k, v in g.items() if k not in fields} for g in layers]
    of_method = [{k: v for k, v in g.items() if k in fields} for g in layers]
    for where, layer, of_strategy in file_layers(command.config, scenario, entry):
        if of_strategy and (unknown := set(layer) - set(fields)):
            raise UserError(
                f"{where}: the recipe is the {cls.base_option}'s, leave out {min(unknown)}"
            )
    _, options = make_settings(command.config, scenario, entry, *of_method)
    base = getattr(options, cls.base_option)
    if text := cls.refuses(registry.strategy_class(base)):
        raise UserError(f"{spec.name}.{cls.base_option}={base}: {base} {text}")
    keys = [*fields, *_keys_below(registry, base, passed | inline), *Recipe.model_fields]
    for key in (key for key in (*passed, *inline) if key not in keys):
        raise UserError(
            f"{spec.text}: neither {spec.name} nor its {cls.base_option} has an option '{key}'."
            f" {nearest(key, keys)}"
        )
    below = _plan(command, registry, scenario, Spec(base, base, inline), passed)
    return RunPlan(spec.text, entry, cls.over(below.cls), options, below.recipe, base=below)


def _keys_below(registry: Registry, name: str, given: Mapping[str, Any]) -> list[str]:
    """Return the options of a strategy, and of those it builds on."""
    fields = registry.get("strategies", name).options_class().model_fields
    option = registry.strategy_class(name).base_option
    if option is None:
        return [*fields]
    return [*fields, *_keys_below(registry, given.get(option, fields[option].default), given)]


def pairs(plan: RunPlan) -> list[tuple[RunPlan, RunPlan]]:
    """Return each plan that builds on another with that one."""
    return list(pairwise([plan, *plan.bases]))
