"""Shorten what every command does besides its work; `drawn_figures` draws them nevertheless."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from cl_clipfit.clip.loading import factory
from cl_clipfit.commands import summary
from cl_clipfit.config.options import Options
from cl_clipfit.data.source import DataRequest, Source
from cl_clipfit.experiment import estimate, sources
from cl_clipfit.registry import Entry
from cl_clipfit.report import figures
from cl_clipfit.report import landscape as landscapes
from cl_clipfit.report.display import remove_figure
from cl_clipfit.report.html import thumbnails
from cl_clipfit.storage.files import write_atomic


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Leave out of each command what takes most of its time and what few tests look at."""
    for leave_out in (_figures, _reports, _mini, _streams, _disk, _estimates):
        leave_out(patch)


def _figures(patch: pytest.MonkeyPatch) -> None:
    """Let figures be a line of text: to draw takes longer than to train the tiny model."""

    def write(figure: object, path: Path) -> None:
        for kind in ("png", "svg"):
            write_atomic(path.with_name(f"{path.name}.{kind}"), "a figure\n")

    def write_changes(result: dict[str, Any], path: Path, changes: Any = None, **_: str) -> None:
        if any(result["change_by_layer"] if changes is None else changes):
            write(result, path)

    def write_comparison(results: Sequence[dict[str, Any]], path: Path) -> None:
        draw = write if figures._curve_names(results) else lambda _, path: remove_figure(path)
        draw(results, path)

    for module in (figures, landscapes):
        patch.setattr(module, "save_figure", write)
    patch.setattr(figures, "plot_run", write)
    patch.setattr(figures, "plot_changes", write_changes)
    patch.setattr(figures, "plot_comparison", write_comparison)


def _reports(patch: pytest.MonkeyPatch) -> None:
    """Write no page at the end of a command, and no pictures for it."""
    patch.setattr(summary, "write_report", lambda *_: None)
    patch.setattr(thumbnails, "save_thumbnails", lambda *_: None)


def _mini(patch: pytest.MonkeyPatch) -> None:
    """Load and hash the bundled weights once; every further model is a copy of the first."""
    load, hash_weights = factory._load, factory.hash_weights
    bundled = str(factory.MINI_FOLDER / "weights.safetensors")
    loaded: list[tuple[nn.Module, str]] = []
    fresh: list[nn.Module] = []

    def load_once(source: Any) -> tuple[nn.Module, list[str]]:
        if source.weights.file != bundled:
            return load(source)
        if not loaded:
            clip = load(source)[0]
            loaded.append((clip, hash_weights(clip)))
        fresh[:] = [copy.deepcopy(loaded[0][0])]
        return fresh[0], []

    def hash_once(module: nn.Module) -> str:
        return loaded[0][1] if fresh and module is fresh.pop() else hash_weights(module)

    patch.setattr(factory, "_load", load_once)
    patch.setattr(factory, "hash_weights", hash_once)


def _streams(patch: pytest.MonkeyPatch) -> None:
    """Draw the images of a bundled stream once; every further command gets a copy."""
    load, drawn = sources.load_source, dict[tuple[str, str, bool], Source]()

    def load_once(entry: Entry, options: Options, request: DataRequest) -> Source:
        if not entry.module or entry.about.get("DOWNLOAD") != "none":
            return load(entry, options, request)
        key = entry.sha256, repr(options), request.test_only
        if key not in drawn:
            drawn[key] = load(entry, options, request)
        return copy.deepcopy(drawn[key])

    patch.setattr(sources, "load_source", load_once)


def _disk(patch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: no test survives a power failure."""
    patch.setattr(os, "fsync", os.fstat)


def _estimates(patch: pytest.MonkeyPatch) -> None:
    """Time one image and one prompt before a run."""
    patch.setattr(estimate, "_TIMED_IMAGES", 1)
    patch.setattr(estimate, "_TIMED_PROMPTS", 1)
