"""Recipes: how a strategy trains on a scenario, layered from what each of them says."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cl_clipfit.config import Options, Recipe, RunConfig, explain, make_options
from cl_clipfit.errors import UserError
from cl_clipfit.registry import Entry


def make_settings(
    config: RunConfig, scenario: Entry, strategy: Entry, own: Mapping[str, Any]
) -> tuple[Recipe, Options]:
    """Layer a strategy's recipe and options; what comes later wins.

    Defaults; the scenario's `RECIPE`; the strategy's `RECIPE` and its `RECIPES` for this scenario
    (or, with `--recipe published`, its `PUBLISHED` alone); `--set STRATEGY.key=value`; the options
    of the command. A strategy's recipes may set its own options too.

    Args:
        config: the command.
        scenario: the stream.
        strategy: the method.
        own: what `--set` says of it.

    Raises:
        UserError: an unknown key or a value out of range; the message names the file or option.
    """
    options_class = strategy.options_class()
    recipe: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for where, layer in _file_layers(config, scenario, strategy):
        if not isinstance(layer, dict):
            raise UserError(f"{where} must be a dict of settings such as epochs and lr")
        of_strategy = options_class if where.startswith(strategy.file.name) else Options
        for_options, for_recipe = split_settings(layer, of_strategy)
        try:
            known = [*Recipe.model_fields, *of_strategy.model_fields]
            unknown = {k: v for k, v in for_options.items() if k not in of_strategy.model_fields}
            Recipe.model_validate({**for_recipe, **unknown})
            of_strategy.model_validate({**options, **for_options})
        except ValidationError as error:
            raise UserError(f"{where}: {explain(error, known=known)}") from error
        recipe |= for_recipe
        options |= for_options
    for_options, for_recipe = split_settings(own, options_class)
    command = {"epochs": config.epochs, "batch_size": config.batch_size, "lr": config.lr}
    recipe |= for_recipe | {key: value for key, value in command.items() if value is not None}
    try:
        layered = Recipe.model_validate(recipe)
    except ValidationError as error:
        message = explain(error, prefix=f"{strategy.name}.", known=Recipe.model_fields)
        raise UserError(f"--set {message}") from error
    return layered, make_options(options_class, options | for_options, strategy.name)


def _file_layers(
    config: RunConfig, scenario: Entry, strategy: Entry
) -> list[tuple[str, dict[str, Any]]]:
    """Return what the files say, with where they say it."""
    file, about = strategy.file.name, strategy.about
    if config.recipe == "published":
        if "PUBLISHED" not in about:
            raise UserError(f"--recipe published: no published recipe is known for {strategy.name}")
        return [(f"{file}: PUBLISHED", about["PUBLISHED"])]
    recipes = about.get("RECIPES", {})
    here = recipes.get(scenario.name, {}) if isinstance(recipes, dict) else recipes
    return [
        (f"{scenario.file.name}: RECIPE", scenario.about.get("RECIPE", {})),
        (f"{file}: RECIPE", about.get("RECIPE", {})),
        (f"{file}: RECIPES", here),
    ]


def split_settings(
    values: Mapping[str, Any], options: type[Options]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tell a strategy's own options from settings of its recipe; its own names come first."""
    recipe = {
        key: value
        for key, value in values.items()
        if key in Recipe.model_fields and key not in options.model_fields
    }
    return {key: value for key, value in values.items() if key not in recipe}, recipe
