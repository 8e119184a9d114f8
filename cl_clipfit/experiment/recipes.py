"""Recipes: how a strategy trains on a scenario, layered from their files and the command."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cl_clipfit.config.command import RunConfig
from cl_clipfit.config.options import Options, Recipe, explain, make_options
from cl_clipfit.errors import UserError
from cl_clipfit.registry import Entry

Settings = dict[str, Any]
STEPS = 100  # of a task, where no recipe sets the epochs; see docs/clipfit.md
FEWEST_EPOCHS, MOST_EPOCHS = 3, 20


def make_settings(
    config: RunConfig,
    scenario: Entry,
    strategy: Entry,
    assigned: Mapping[str, Any],
    inline: Mapping[str, Any] | None = None,
) -> tuple[Recipe, Options]:
    """Return a strategy's recipe and options, layered; later layers override earlier ones.

    The layers are: defaults; the scenario's `RECIPE`; the strategy's `RECIPE` and its `RECIPES` for
    this scenario (with `--recipe published`, only its `PUBLISHED` instead of these three);
    `--set STRATEGY.key=value`; the options of the command; the settings in the strategy's label. A
    strategy's recipes may set its options too.

    Args:
        config: the command.
        scenario: the stream.
        strategy: the method.
        assigned: the settings that `--set` gives it.
        inline: the settings in its label, as in "full:ce_scope=task".

    Raises:
        UserError: a key is unknown or a value out of range; the message names the file or option.
    """
    options_class = strategy.options_class()
    recipe: Settings = {}
    options: Settings = {}
    for where, layer, of_strategy in file_layers(config, scenario, strategy):
        kind = options_class if of_strategy else Options
        for_options, for_recipe = check_layer(where, layer, kind, options)
        recipe |= for_recipe
        options |= for_options
    command = {"epochs": config.epochs, "batch_size": config.batch_size, "lr": config.lr}
    given = {key: value for key, value in command.items() if value is not None}
    for_options, for_recipe = split_settings(assigned, options_class)
    more_options, more_recipe = split_settings(inline or {}, options_class)
    try:
        layered = Recipe.model_validate(recipe | for_recipe | given | more_recipe)
    except ValidationError as error:
        message = explain(error, prefix=f"{strategy.name}.", names=Recipe.model_fields)
        raise UserError(f"--set {message}") from error
    chosen = options | for_options | more_options
    return layered, make_options(options_class, chosen, strategy.name)


def adapted(recipe: Recipe, images: float) -> Recipe:
    """Return a recipe whose epochs, if nothing set them, make about `STEPS` steps per task.

    Args:
        recipe: how a task is trained.
        images: training images of a task, the mean over the stream.

    Example:
        >>> [adapted(Recipe(batch_size=32), images).epochs for images in (80, 640, 5000)]
        [20, 5, 3]
        >>> adapted(Recipe(epochs=7), 640).epochs
        7
    """
    if "epochs" in recipe.model_fields_set:
        return recipe
    steps = max(1, math.ceil(images / recipe.batch_size))
    epochs = min(max(round(STEPS / steps), FEWEST_EPOCHS), MOST_EPOCHS)
    return recipe.model_copy(update={"epochs": epochs})


def check_layer(
    where: str, layer: Any, options_class: type[Options], below: Settings | None = None
) -> tuple[Settings, Settings]:
    """Validate a recipe that a file declares.

    Args:
        where: file and name of the literal, for the message.
        layer: the literal.
        options_class: options that it may set in addition to the recipe.
        below: options of earlier layers.

    Returns:
        options, and settings of the recipe.

    Raises:
        UserError: it is not a dict, a key is unknown, or a value is out of range.
    """
    if not isinstance(layer, dict):
        raise UserError(f"{where} must be a dict of settings such as epochs and lr")
    for_options, for_recipe = split_settings(layer, options_class)
    names = [*Recipe.model_fields, *options_class.model_fields]
    unknown = {k: v for k, v in for_options.items() if k not in options_class.model_fields}
    try:
        Recipe.model_validate({**for_recipe, **unknown})
        options_class.model_validate({**(below or {}), **for_options})
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, names=names)}") from error
    return for_options, for_recipe


def named_recipes(entry: Entry) -> dict[str, Settings]:
    """Return the validated recipes of a strategy or scenario file, by title.

    Raises:
        UserError: a recipe is invalid; see `check_layer`.
    """
    about, file = entry.about, entry.file.name
    options_class = entry.options_class() if entry.kind == "strategies" else Options
    declared = {"recipe": ("RECIPE", about.get("RECIPE", {}))}
    recipes = about.get("RECIPES", {})
    check_layer(f"{file}: RECIPES", {} if isinstance(recipes, dict) else recipes, Options)
    declared |= {f"recipe on {name}": ("RECIPES", layer) for name, layer in recipes.items()}
    declared["recipe with --recipe published"] = ("PUBLISHED", about.get("PUBLISHED", {}))
    for literal, layer in declared.values():
        check_layer(f"{file}: {literal}", layer, options_class)
    return {title: layer for title, (_, layer) in declared.items()}


def file_layers(config: RunConfig, scenario: Entry, strategy: Entry) -> list[tuple[str, Any, bool]]:
    """Return the recipes that apply: file and literal, content, whether it is the strategy's.

    Raises:
        UserError: `--recipe published` is given, and the strategy has none.
    """
    file, about = strategy.file.name, strategy.about
    if config.recipe == "published":
        if "PUBLISHED" not in about:
            raise UserError(
                f"--recipe published: no published recipe is known for {strategy.name};"
                " --strategy chooses others"
            )
        return [(f"{file}: PUBLISHED", about["PUBLISHED"], True)]
    recipes = about.get("RECIPES", {})
    here = recipes.get(scenario.name, {}) if isinstance(recipes, dict) else recipes
    return [
        (f"{scenario.file.name}: RECIPE", scenario.about.get("RECIPE", {}), False),
        (f"{file}: RECIPE", about.get("RECIPE", {}), True),
        (f"{file}: RECIPES", here, True),
    ]


def split_settings(values: Mapping[str, Any], options: type[Options]) -> tuple[Settings, Settings]:
    """Separate a strategy's options from settings of its recipe; an option hides such a setting."""
    recipe = {
        key: value
        for key, value in values.items()
        if key in Recipe.model_fields and key not in options.model_fields
    }
    return {key: value for key, value in values.items() if key not in recipe}, recipe
