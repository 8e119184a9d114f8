"""Shared pieces."""

from typing import Any

import numpy as np

CLASSES, WIDTH = 7, 5


def arrays(seed: int = 0) -> dict[str, Any]:
    """Return noisy copies of the text features; two classes share a name."""
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    names = np.array(["crane", "dog", "crane", "cat", "hen", "ox", "bee"])
    content: dict[str, Any] = {"text": text, "classnames": names}
    for part, per_class in (("train", 6), ("test", 5)):
        labels = np.repeat(np.arange(CLASSES), per_class)
        noise = rng.normal(size=(len(labels), WIDTH))
        content |= {f"{part}_x": (text[labels] + 0.8 * noise).astype(np.float16)}
        content |= {f"{part}_y": labels.astype(np.int32)}
    return content
