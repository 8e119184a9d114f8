"""What names a run: the digest of all that changes its numbers, and the command that repeats it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_clipfit import __version__
from cl_clipfit.clip import ModelIdentity
from cl_clipfit.config.command import RunConfig
from cl_clipfit.config.parsing import format_setting, parse_settings
from cl_clipfit.data.orders import NAMED_ORDERS
from cl_clipfit.errors import is_file
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.experiment.stream_plan import StreamPlan
from cl_clipfit.storage.files import sha256

if TYPE_CHECKING:
    pass


def run_digest(
    stream: StreamPlan,
    run: RunPlan,
    identity: ModelIdentity,
    data: Sequence[str],
    more: Mapping[str, Any] | None = None,
) -> str:
    """Return the hash that tells the run from others: over everything that changes numbers.

    The bytes of the strategy's, scenario's and probes' files count, and all images and labels: an
    edited method is run anew, and so is one on changed data.

    Args:
        stream: what all runs of the command share.
        run: the run.
        identity: the model's weights.
        data: hash of the stream's data set, then of each probe's.
        more: further settings, of a run that starts from another one.
    """
    return settings_hash(
        {
            "version": __version__,
            "scenario": [stream.entry.name, stream.entry.sha256, stream.options.model_dump()],
            "data": list(data),
            "shots": stream.shots,
            "validation": stream.validation,
            "limit": stream.limit,
            "online": stream.online,
            "blurry": stream.blurry,
            "templates": stream.templates,
            "probes": [[probe.name, probe.sha256] for probe in stream.probes],
            "strategy": [run.strategy.name, run.strategy.sha256, run.options.model_dump()],
            "host": _host_digest(run),
            "recipe": run.recipe.model_dump() if run.recipe else None,
            "seed": run.seed,
            "model": [identity.architecture, identity.pretrained, identity.weights_sha256],
            "device": stream.device.type,
            "precision": stream.precision,
            # Not micro_batch, recompute or compile: they change numbers by rounding alone.
            **run.other_seeds(),
            **_unusual(stream),
            **(more or {}),
        }
    )


def _unusual(stream: StreamPlan) -> dict[str, Any]:
    """Return settings that are only written down where they are not the default ones."""
    return {
        **({"deterministic": True} if stream.deterministic else {}),
        **({"on_nan": stream.on_nan} if stream.on_nan != "stop" else {}),
    }


def _host_digest(run: RunPlan) -> list[Any] | None:
    if run.host is None or run.host_options is None:
        return None
    return [run.host.name, run.host.sha256, run.host_options.model_dump()]


def _full_path(file: Path | str | None) -> str | None:
    """Return a file's whole path; a name that is no file as it is."""
    if file is None:
        return None
    return str(Path(file).resolve()) if is_file(Path(file), or_folder=True) else str(file)


def config_of(stream: StreamPlan, run: RunPlan, config: RunConfig) -> dict[str, Any]:
    """Return `config.yaml`: the command that repeats this one run, defaults filled in."""
    recipe = run.recipe.model_dump() if run.recipe else {}
    options = {"epochs", "batch_size", "lr"}
    own = [
        (stream.entry.name, stream.options.model_dump(mode="json")),
        (run.strategy.name, run.options.model_dump(mode="json")),
        ((run.host or run.strategy).name, {k: v for k, v in recipe.items() if k not in options}),
    ]
    if run.host and run.host_options:
        own.append((run.host.name, run.host_options.model_dump(mode="json")))
    given = parse_settings(config.set)
    own += [(e.name, given.get(e.name, {})) for e in (*stream.parts, *stream.probes)]
    values = {
        "scenario": stream.entry.name,
        "strategy": [run.strategy.name],
        "model": stream.model,
        "seed": [run.seed],
        **run.other_seeds(),  # not where they follow the seed: another one may be given beside
        **{key: recipe.get(key) for key in sorted(options)},
        "shots": stream.shots,
        "validation": stream.validation,
        "limit": stream.limit,
        "online": stream.online,
        "blurry": stream.blurry,
        "template": list(stream.templates) if stream.templates else None,
        "tasks": _full_path(stream.tasks_file) or stream.tasks,
        "base_classes": stream.base_classes,
        "class_order": order
        if (order := stream.class_order) in NAMED_ORDERS
        else _full_path(order),
        "class_names": _full_path(config.class_names),
        "split": _full_path(config.split),
        "skip_bad_images": config.skip_bad_images or None,
        "data_dir": _full_path(config.data_dir),
        "unverified_data": config.unverified_data or None,
        "device": stream.device.type,
        "precision": stream.precision,
        "micro_batch": config.micro_batch,
        "recompute": config.recompute or None,
        "compile": config.compile or None,
        **_unusual(stream),
        "set": [f"{n}.{key}={format_setting(v)}" for n, vs in own for key, v in vs.items()],
        "plugin": [str(file.resolve()) for file in config.plugin],
        "probe": [probe.name for probe in stream.probes],
    }
    return {key: value for key, value in values.items() if value is not None}


def settings_hash(settings: dict[str, Any]) -> str:
    """Return the SHA-256 over everything that changes numbers, in canonical JSON."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), default=str)
    return sha256(text.encode())
