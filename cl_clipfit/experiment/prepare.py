"""Prepare what a command needs before it trains: stream, plans, data, probes and model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from cl_clipfit.clip import (
    MINI,
    CLIPClassifier,
    ModelIdentity,
    Preprocess,
    check_model,
    create_classifier,
    parse_model,
)
from cl_clipfit.clip.feature_classifier import FEATURES, FeatureClassifier, hash_features
from cl_clipfit.clip.precision import announce_precision, resolve_precision, tower_width
from cl_clipfit.clip.prompts import equal_rows, name_same, same_prompts
from cl_clipfit.config.command import RunConfig
from cl_clipfit.config.options import explain
from cl_clipfit.config.parsing import Command, parse_command
from cl_clipfit.data.images.loading import ImageLoader, sized
from cl_clipfit.data.layout import Layout
from cl_clipfit.data.source import Source
from cl_clipfit.data.streams import Scenario, build_scenario
from cl_clipfit.errors import UserError
from cl_clipfit.experiment.identity import run_digest
from cl_clipfit.experiment.run_plan import ResolvedCommand, RunPlan, resolve
from cl_clipfit.experiment.sources import data_request, layout_of, read_sources, with_following
from cl_clipfit.experiment.stream_plan import StreamPlan, plan_stream
from cl_clipfit.registry import Registry
from cl_clipfit.runtime import launch
from cl_clipfit.runtime.progress import Progress
from cl_clipfit.storage.run_folder import RunFolder, SharedFolder


@dataclass(frozen=True)
class Prepared(ResolvedCommand):
    """A resolved command with its data and its model.

    Attributes:
        source: the stream's data set.
        layout: the order and tasks of its classes.
        probes: data sets scored zero-shot.
        probe_hashes: of their test images, names and templates.
        model: the pretrained classifier, without classes.
        loader: reads images into memory.
    """

    source: Source
    layout: Layout
    probes: Mapping[str, Source]
    probe_hashes: list[str]
    model: CLIPClassifier
    loader: ImageLoader

    def scenario(self, seed: int) -> Scenario:
        """Build the stream; only few-shot streams depend on the seed."""
        # Images left out are counted in the result, which must not depend on the other methods.
        trains = self.loader.skip_bad or any(p.cls.learning != "none" for p in self.plans)
        return _build(self.stream, self.source, self.layout, self.loader, seed, trains)

    def folder(self, plan: RunPlan, name: str = "", trained_on: str = "", **more: Any) -> RunFolder:
        """Return the folder of a run.

        Args:
            plan: the run.
            name: name of the method in the folder's name; default the strategy's.
            trained_on: the device it was trained on; default the command's.
            **more: additional settings that the digest covers.
        """
        assert self.model.identity is not None
        data = [self.source.sha256, *self.probe_hashes]
        device = torch.device(trained_on or self.stream.compute.device)
        stream = replace(self.stream, compute=replace(self.stream.compute, device=device))
        layout = self.layout
        more = {"layout": [layout.order, layout.task_classes, layout.task_names], **more}
        digest = run_digest(stream, plan, self.model.identity, data, more)
        kind = RunFolder if launch.writes() else SharedFolder
        return kind(
            self.command.config.output, stream.entry.name, name or plan.strategy.name, plan.seed,
            digest, plan.changed, str(self.source.origin.get("name", "")),
        )  # fmt: skip


def load_scenario(
    name: str,
    *,
    preprocess: Preprocess | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **settings: Any,
) -> Scenario:
    """Read a data set and build its stream of tasks, without a model.

    Args:
        name: of the scenario, as in `run.py list scenarios`; settings may follow, as on the
            command line: "base-to-novel:dataset=dtd".
        preprocess: brings image files to the input size of a model (`model.preprocess`); default
            that of CLIP, 224 x 224 pixels.
        seed: of the draw of shots.
        progress: receives progress and notes; default none.
        settings: fields of `RunConfig` that make a stream, such as `tasks`, `shots`, `data_dir`.

    Returns:
        the stream: `benchmark` for Avalanche, `class_names`, `task_classes`, templates and images.

    Raises:
        UserError: an unknown name or setting, or data that cannot be read.

    Example:
        >>> from cl_clipfit import load_scenario
        >>> scenario = load_scenario("split-digits", tasks=5)
        >>> len(scenario.class_names), len(scenario.benchmark.train_stream)
        (10, 5)
    """
    try:
        config = RunConfig(scenario=name, strategy=["zero-shot"], probe=[], **settings)
    except ValidationError as error:
        raise UserError(f"scenario {name}: {explain(error)}") from error
    progress, registry, command = (
        progress or Progress(),
        Registry(config.plugin),
        parse_command(config),
    )
    _import_plugins(registry, command, progress)
    stream = plan_stream(command, registry)
    request = data_request(config, progress)
    try:
        source, _ = read_sources(command, registry, stream, request)
        source, layout = with_following(source, layout_of(source, stream), stream)
        source = sized(source, preprocess or Preprocess.default())
        loader = ImageLoader(request, config.skip_bad_images)
        return _build(stream, source, layout, loader, seed)
    finally:
        progress.stop()


def _build(
    stream: StreamPlan, source: Source, layout: Layout, loader: ImageLoader, seed: int,
    trains: bool = True,
) -> Scenario:  # fmt: skip
    """Build a stream of tasks from its data set."""
    settings, before = stream.settings, len(loader.left_out)
    scenario = build_scenario(
        stream.entry.name,
        source,
        layout=layout,
        templates=_templates(stream),
        seed=stream.shots_seed(seed),
        load=loader,
        trains=trains,
        **settings.cut(),
    )
    if stream.data_settings.skip_bad_images:
        left_out = [*loader.probes_left_out, *loader.left_out[before:]]
        scenario.origin.update(skipped_images=len(left_out), skipped=left_out)
    counts = torch.bincount(scenario.train.labels)
    short = int(((counts > 0) & (counts < (settings.shots or 0))).sum())
    if short and not scenario.task_names:  # unreadable images leave a class fewer than `--shots`
        scenario.origin["classes_with_fewer_shots"] = short
        loader.request.note(
            f"{short} classes have fewer than {settings.shots} shots: some of those drawn cannot be"
            " read"
        )
    return scenario


def _templates(stream: StreamPlan) -> tuple[str, ...] | None:
    """Return the templates of the command; None where the data set has what is used."""
    own = stream.data_settings.prompts  # joined with the templates already
    return tuple(stream.settings.template) if stream.settings.template and not own else None


def prepare(config: RunConfig, progress: Progress) -> Prepared:
    """Resolve a command, read its data and load its model.

    Raises:
        UserError: a name, file or value is wrong.
    """
    registry = Registry(config.plugin)
    command = parse_command(config)
    _import_plugins(registry, command, progress)
    resolved = resolve(command, registry)
    stream = resolved.stream
    if stream.model != FEATURES:
        check_model(stream.model)  # report a wrong name before reading a data set
    request = data_request(config, progress)
    try:
        source, probes = read_sources(resolved.command, registry, stream, request)
    finally:
        progress.stop()  # of a download
    if parse_model(stream.model)[0] == MINI != parse_model(stream.facts.MODEL)[0]:
        progress.note(
            "the mini CLIP was trained on drawn shapes and letters: on photographs expect it to"
            " guess, and choose a model with --model"
        )
    layout = layout_of(source, stream)
    if not isinstance(stream.tasks, Path):
        stream = replace(stream, tasks=len(layout.task_classes))
    images = _images_per_task(source, layout, stream)  # of the first stream: it sets the recipe
    source, layout = with_following(source, layout, stream)
    model = _load_model(stream, source, layout)
    model.parts = layout.first_labels
    # Before classes are added, because their anchors are encoded in this precision.
    requested, device = stream.compute.precision, stream.compute.device
    model.precision = resolve_precision(requested, device, tower_width(model.clip))
    announce_precision(requested, model.precision, device, progress)
    stream = replace(stream, compute=replace(stream.compute, precision=model.precision))
    source = replace(source, warnings=(*source.warnings, *_same_prompts(source, stream, model)))
    for text in source.warnings:
        progress.warn(text)
    loader = ImageLoader(request, config.skip_bad_images)
    source = sized(source, model.preprocess)
    hashes = [probe.sha256 for probe in probes.values()]  # before the images are loaded
    try:
        probes = {name: _read_test(probe, model, loader) for name, probe in probes.items()}
        loader.probes_left_out = tuple(loader.left_out)
    finally:
        progress.stop()
    plans = [plan.adapted_to(images) for plan in resolved.plans]
    return Prepared(
        resolved.command, registry, stream, plans, source, layout, probes, hashes, model, loader,
    )  # fmt: skip


def _images_per_task(source: Source, layout: Layout, stream: StreamPlan) -> float:
    """Return the training images of a task, the mean over the stream."""
    settings, counts = stream.settings, torch.bincount(source.train.labels)
    if settings.shots or settings.limit:
        counts = counts.clamp(max=settings.shots or settings.limit)
    return float(counts.sum()) * (1 - (settings.validation or 0)) / len(layout.task_classes)


def _load_model(stream: StreamPlan, source: Source, layout: Layout) -> CLIPClassifier:
    if stream.model != FEATURES:
        return create_classifier(stream.model, stream.compute.device)
    if source.text is None:
        raise UserError(f"scenario {stream.entry.name}: its features need text features too")
    identity = ModelIdentity(FEATURES, "file", hash_features(source.text, source.logit_scale))
    model = FeatureClassifier(source.text[layout.order], source.logit_scale, identity)
    return model.to(stream.compute.device)


def _same_prompts(source: Source, stream: StreamPlan, model: CLIPClassifier) -> list[str]:
    """Return a warning if text cannot tell some classes apart: the first of them always wins."""
    names = source.class_names
    if source.text is not None:
        groups, what = equal_rows(source.text), "text features"
    else:
        templates = _templates(stream) or source.templates
        groups, what = same_prompts(model.tokenizer, names, templates), "prompts"
    return [name_same(groups, names, what)] if groups else []


def _read_test(probe: Source, model: CLIPClassifier, loader: ImageLoader) -> Source:
    probe = sized(probe, model.preprocess)
    return replace(probe, test=loader(probe.test))


def _import_plugins(registry: Registry, command: Command, progress: Progress) -> None:
    """Import every `--plugin` file; skip those that fail with a warning, unless they are used."""
    needed = {command.scenario.name, *(spec.name for spec in command.strategies)}
    for entry in registry.plugins:
        try:
            if entry.error:
                raise UserError(entry.error)
            entry.load()
        except UserError as error:
            if entry.name in needed:
                raise
            progress.warn(f"plug-in left out: {error}")
