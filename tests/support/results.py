"""Shared pieces."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cl_clipfit.metrics.predictions import Predictions
from cl_clipfit.report.html.thumbnails import save_thumbnails
from cl_clipfit.storage.files import write_json, write_yaml
from cl_clipfit.storage.predictions import write_predictions


def result(label: str, seed: int = 0, level: float = 80.0) -> dict[str, Any]:
    """Return as much of a result as figures read: two tasks."""
    return {
        "scenario": "tiny", "strategy": label.partition(":")[0], "label": label, "seed": seed,
        "model": {"architecture": "mini", "pretrained": "bundled"},
        "all_classes_matrix": [[50.0, 50.0], [level, 50.0], [level - 10, level]],
        "curves": {
            "accuracy": [None, level, level - 5], "forgetting": [None, None, 10.0],
            "retention": [0.0, -1.0, -2.0], "zero_shot": [None, 60.0, 50.0],
        },
        "change_by_layer": [{"clip.transformer.resblocks.0": 0.1, "clip.visual.ln_pre": 0.2}] * 2,
    }  # fmt: skip


TASKS = 3
CLASSES = [["cat", "dog"], ["fox", "<b>&"], ["owl", "bee"]]


def whole_result(label: str, seed: int = 0, level: float = 80.0, **more: Any) -> dict[str, Any]:
    """Return the content of a `result.json` of three tasks, as a run writes it."""
    accuracy: list[list[float | None]] = [
        [level - 10 * max(0, t - j) if j < t else None for j in range(TASKS)]
        for t in range(TASKS + 1)
    ]
    everywhere = [[50.0 if v is None else v for v in row] for row in accuracy]
    name = label.partition(":")[0]
    return {
        **result(label, seed, level),
        "schema": 1, "complete": True, "digest": f"{zlib.crc32(f'{label}{seed}'.encode()):08x}",
        "protocol": "class-incremental", "strategy": name, "scored_on": "test images",
        "stream": {}, "recipe": None, "options": {}, "host": None, "precision": "fp32",
        "model": {
            "architecture": "mini", "pretrained": "bundled", "weights_sha256": "ab" * 32,
            "parameters": 1000, "trainable_parameters": 0 if name == "zero-shot" else 20,
        },
        "data": {"sha256": "cd" * 32}, "class_order": list(range(6)), "templates": ["a {}."],
        "tasks": [{"classes": c, "train_samples": 8, "test_samples": 8} for c in CLASSES],
        "accuracy_matrix": accuracy, "all_classes_matrix": everywhere,
        "task_aware_matrix": everywhere,
        "metrics": {"average_accuracy": level - 2, "last_accuracy": level - 5, "retention": -1.0},
        "curves": {
            "accuracy": [None, level, level - 5, level - 10 + seed],
            "forgetting": [None, None, 10.0, 12.0], "retention": [0.0, -1.0, -2.0, -3.0],
            "zero_shot": [None, 60.0, 50.0, 45.0],
        },
        "probes": {}, "change_by_layer": [
            {"clip.visual.transformer.resblocks.0": 0.1 * t, "clip.visual.ln_post": 0.2,
             "clip.transformer.resblocks.0": 0.3} for t in (1, 2, 3)
        ] if name != "zero-shot" else [{}] * 3,
        "kept": {"what": "sums of features", "bytes": [10, 20, 2000], "exemplars": "no"},
        "merge": None, "timings": {"train_seconds": [1.0, 2.0, 3.0], "eval_seconds": [0.5] * 4},
        "peak_memory_bytes": 2_000_000, "warnings": [],
        "environment": {"cl_clipfit": "0.2.0", "python": "3.11.7", "torch": "2.6.0",
                        "device": "cpu", "hardware": "x86_64", "system": "Linux", "threads": 1},
        **more,
    }  # fmt: skip


def save_run(folder: Path, content: dict[str, Any], predictions: bool = True) -> Path:
    """Write what looks like a finished run, with predictions and pictures; return its folder.

    Of every task, 8 images: those of class 2t and 2t + 1 in turn. Training makes every class of the
    tasks seen right, but the first image of a task, which is taken for class 0, and from the task
    after on also the second, which is taken for class 1.
    """
    run = folder / f"{content['label'].replace(':', '-')}-s{content['seed']}"
    write_json(run / "result.json", content)
    write_yaml(run / "config.yaml", {"scenario": "tiny", "strategy": [content["strategy"]],
               "seed": [content["seed"]], "set": [], "deterministic": True})  # fmt: skip
    if not predictions:
        return run
    tasks = np.repeat(np.arange(TASKS, dtype=np.int32), 8)
    labels = (2 * tasks + np.tile(np.arange(8) % 2, TASKS)).astype(np.int32)
    rows = []
    for row in range(TASKS + 1):
        best = np.where(tasks < row, labels, 0)
        best[0::8] = 0
        best[1::8] = np.where(tasks[1::8] < row - 1, 1, best[1::8])
        top = np.full((24, 5), -1, np.int32)
        top[:, 0] = best
        scores = np.zeros((24, 5), np.float16)
        scores[:, 0] = 0.75
        rows.append(Predictions(labels, top, scores, tasks))
        write_predictions(run, row, rows[-1])
    images = torch.arange(24, dtype=torch.uint8)[:, None, None, None].expand(24, 3, 8, 8)
    save_thumbnails(images, rows, run)
    return run
