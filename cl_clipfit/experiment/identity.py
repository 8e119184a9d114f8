"""The identity of a run: a digest of all that changes its results, and the command to repeat it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_clipfit import __version__
from cl_clipfit.clip import ModelIdentity
from cl_clipfit.config.command import RECIPE_OPTIONS, OutputSettings, RunConfig
from cl_clipfit.config.model_names import with_absolute_paths
from cl_clipfit.config.parsing import Command, format_setting
from cl_clipfit.data.orders import NAMED_ORDERS
from cl_clipfit.errors import is_file
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.experiment.stream_plan import StreamPlan
from cl_clipfit.runtime.code_files import package_hash
from cl_clipfit.storage.files import sha256

_KEPT = "no_predictions"  # of the settings of output: a resumed run does the same


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 hash, in hex digits, of settings in canonical JSON."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), default=str)
    return sha256(text.encode())


def run_digest(
    stream: StreamPlan,
    run: RunPlan,
    identity: ModelIdentity,
    data: Sequence[str],
    more: Mapping[str, Any] | None = None,
) -> str:
    """Return the hash that identifies a run, over everything that changes its results.

    It covers the code of the strategy, the scenario and the probes, and all images and labels: if a
    method or the data change, the run is repeated.

    Args:
        stream: what all runs of the command share.
        run: the run.
        identity: the model's weights.
        data: hashes of the stream's data set and of each probe's.
        more: additional settings of a run that starts from another one.
    """
    compute = stream.compute
    return settings_hash(
        {
            "version": __version__,
            "scenario": [stream.entry.name, stream.entry.code_hash, stream.options.model_dump()],
            "data": list(data),
            # Without defaults: a later option must not rename the runs that do not use it.
            "stream": {k: v for k, v in stream.settings.cut().items() if v is not None},
            "templates": stream.settings.template,
            "probes": [[probe.name, probe.code_hash] for probe in stream.probes],
            "strategy": [run.strategy.name, run.strategy.code_hash, run.options.model_dump()],
            "host": _describe_base(run),
            "recipe": run.recipe.model_dump() if run.recipe else None,
            "seed": run.seed,
            "model": [identity.architecture, identity.pretrained, identity.weights_sha256],
            "device": compute.device.type,
            "precision": compute.precision,
            **({"deterministic": True} if compute.deterministic else {}),
            **({"on_nan": stream.on_nan} if stream.on_nan != "stop" else {}),
            # Not micro_batch, recompute or compile: they change results only by rounding.
            **run.other_seeds(),
            **(more or {}),
        }
    )


def code_has_changed(result: Mapping[str, Any]) -> bool:
    """Return whether a run of this version was made by other code of this package."""
    environment = result.get("environment", {})
    return environment.get("cl_clipfit_sha256", package_hash()) != package_hash()


def _describe_base(run: RunPlan) -> list[Any] | None:
    if (base := run.base) is None:
        return None
    below = [_describe_base(base)] if base.base else []
    return [base.strategy.name, base.strategy.code_hash, base.options.model_dump(), *below]


def config_of(stream: StreamPlan, run: RunPlan, command: Command) -> dict[str, Any]:
    """Return the content of `config.yaml`: the command that repeats the run, with all defaults."""
    config = command.config
    recipe = run.recipe.model_dump() if run.recipe else {}
    used = config.model_copy(
        update={
            "scenario": stream.entry.name,
            "strategy": [run.strategy.name],
            "seed": [run.seed],
            # Omitted if they follow the seed: the file may be used with another --seed.
            "data_seed": None, "init_seed": None, **run.other_seeds(),
            **{key: recipe.get(key) for key in RECIPE_OPTIONS},
            "model": with_absolute_paths(stream.model),
            "tasks": stream.tasks,
            "class_order": _order(stream.class_order),
            "probe": [probe.name for probe in stream.probes],
            "device": stream.compute.device.type,
            "precision": stream.compute.precision,
            "set": _assignments(stream, run, command),
        }
    )  # fmt: skip
    values = {
        name: _plain(getattr(used, name))
        for name in RunConfig.model_fields
        if (name == _KEPT or name not in OutputSettings.model_fields) and name != "recipe"
    }
    return {
        name: value
        for name, value in values.items()
        if value is not None and value is not False and (name, value) != ("on_nan", "stop")
    }


def _plain(value: Any) -> Any:
    """Return a setting as a YAML value, with absolute paths."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value.resolve()) if isinstance(value, Path) else value


def _order(order: str | None) -> str | None:
    """Return the name of a class order, or the absolute path of its file."""
    if order is None or order in NAMED_ORDERS or not is_file(order):
        return order
    return str(Path(order).resolve())


def _assignments(stream: StreamPlan, run: RunPlan, command: Command) -> list[str]:
    """Return all options of the scenario, the method and its bases in the form of `--set`."""
    recipe = run.recipe.model_dump() if run.recipe else {}
    options = [
        (stream.entry.name, stream.options.model_dump(mode="json")),
        (run.strategy.name, run.options.model_dump(mode="json")),
        (
            [run, *run.bases][-1].strategy.name,
            {k: v for k, v in recipe.items() if k not in RECIPE_OPTIONS},
        ),
        *((base.strategy.name, base.options.model_dump(mode="json")) for base in run.bases),
    ]
    options += [(e.name, command.settings_of(e.name)) for e in (*stream.parts, *stream.probes)]
    return [f"{n}.{key}={format_setting(v)}" for n, vs in options for key, v in vs.items()]
