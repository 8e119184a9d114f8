"""Shared pieces."""

from typing import Any


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
