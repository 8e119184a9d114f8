"""Recipes: how a strategy trains on a scenario, layered from what each of them says."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from cl_clipfit.config import Options, Recipe, RunConfig, explain
from cl_clipfit.errors import UserError
from cl_clipfit.registry import Entry


def make_recipe(
    config: RunConfig, scenario: Entry, strategy: Entry, own: Mapping[str, Any] | None = None
) -> Recipe:
    """Layer a recipe: defaults, the scenario's `RECIPE`, the strategy's `RECIPE`, its `RECIPES`
    for this scenario, `--set STRATEGY.key=value`, and the options of the command.

    Raises:
        UserError: an unknown key or a value out of range; the message names the file or option.
    """
    given = {"epochs": config.epochs, "batch_size": config.batch_size, "lr": config.lr}
    layers: list[tuple[str, Any]] = [
        (f"{scenario.file.name}: RECIPE", scenario.about.get("RECIPE", {})),
        (f"{strategy.file.name}: RECIPE", strategy.about.get("RECIPE", {})),
        (f"{strategy.file.name}: RECIPES", strategy.about.get("RECIPES", {})),
        (f"--set {strategy.name}", own or {}),
        ("command", {key: value for key, value in given.items() if value is not None}),
    ]
    values: dict[str, Any] = {}
    for where, layer in layers:
        if where.endswith("RECIPES") and isinstance(layer, dict):
            layer = layer.get(scenario.name, {})
        if not isinstance(layer, dict):
            raise UserError(f"{where} must be a dict of settings such as epochs and lr")
        try:
            Recipe.model_validate(layer)
        except ValidationError as error:
            raise UserError(f"{where}: {explain(error, known=Recipe.model_fields)}") from error
        values |= layer
    return Recipe.model_validate(values)


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
