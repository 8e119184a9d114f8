"""An untrusted configuration of a model: what it asks for is compared with its weights."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cl_clipfit.errors import UserError
from cl_clipfit.storage.files import read_bytes

MOST_SIZE = 1_000_000  # of one number in a model's configuration
MOST_BLOCKS = 1_000
MOST_CONTEXT = 4_096  # tokens of a text; a causal mask has their square
MOST_PATCHES = 65_536  # of an image
MOST_EMBED = 16_384  # length of a feature; models that timm or transformers build multiply it
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {  # open_clip's, of what a configuration leaves out
    "vision_cfg": {"layers": 12, "width": 768, "mlp_ratio": 4, "patch_size": 16, "image_size": 224},
    "text_cfg": {"layers": 12, "width": 512, "mlp_ratio": 4, "vocab_size": 49408,
                 "context_length": 77},
    "multimodal_cfg": {"layers": 12, "width": 512, "mlp_ratio": 4, "vocab_size": 49408,
                       "proj_type": "none"},
}  # fmt: skip


def check_config(file: Path, size: int) -> dict[str, Any]:
    """Refuse a configuration of a model far larger than its weights, before it is built.

    Args:
        file: in the form of a hub (`open_clip_config.json`), or its `model_cfg` alone, as
            open_clip's own `model_configs` are.
        size: bytes of the weights.

    Returns:
        the configuration in the form of a hub.

    Raises:
        UserError: it is too large, requests custom code, or is not valid JSON.
    """
    try:
        config = json.loads(read_bytes(file))
        config = config if "model_cfg" in config else {"model_cfg": config}
        model = config["model_cfg"]
        towers = {name: part for name, part in model.items() if isinstance(part, dict)}
        code = _runs_code(model)
        large = not all(abs(n) <= MOST_SIZE for n in _numbers(model))  # neither is NaN
        if not large:  # no value takes less than a byte
            embed = _size(model.get("embed_dim", 0), "embed_dim")
            values = sum(
                _least_values({**_DEFAULTS.get(name, {}), **_given(tower)}, embed)
                for name, tower in towers.items()
            )
            large = embed > MOST_EMBED or values > size
        parts = ("embed_dim", int), ("vision_cfg", dict), ("text_cfg", dict)
        missing = [key for key, kind in parts if not isinstance(model.get(key), kind)]
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is not a model configuration: {error!r:.200}") from error
    if missing:
        raise UserError(f"{file} is not a model configuration of open_clip: no '{missing[0]}'")
    if code:
        raise UserError(
            f"{file} has trust_remote_code: it would run code that comes with the model: take it"
            " out if the tokenizer works without"
        )
    if large:
        raise UserError(f"{file} asks for a model far larger than its weights, {size:,} bytes")
    return config


def _runs_code(value: Any) -> bool:
    """Return whether a configuration asks for code of its own, anywhere in it."""
    if isinstance(value, list):
        return any(map(_runs_code, value))
    if not isinstance(value, dict):
        return False
    return bool(value.get("trust_remote_code")) or any(map(_runs_code, value.values()))


def _numbers(value: Any) -> Iterator[float]:
    """Yield all numbers of a configuration, however deep they are."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)


def _given(tower: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tower.items() if value is not None}


def _size(value: Any, key: str) -> float:
    """Return a number of a configuration.

    Raises:
        TypeError: it is none.
        ValueError: it is negative, so that others would seem smaller.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{key} is not a number")
    if value < 0:
        raise ValueError(f"{key} is negative")
    return value


def _area(value: Any, key: str) -> float:
    """Return the product of a pair, or the square of one number."""
    return math.prod(_size(n, key) for n in (value if isinstance(value, list) else [value, value]))


def _least_values(tower: Mapping[str, Any], embed: float) -> float:
    """Return how many values a tower of such a configuration has at least, or infinity."""
    stages = tower.get("layers", 0)
    resnet, other = isinstance(stages, list), tower.get("timm_model_name")
    layers = sum(_size(n, "layers") for n in (stages if resnet else [stages]))
    width, vocabulary, context, mlp = (
        _size(tower.get(key, 0), key)
        for key in ("width", "vocab_size", "context_length", "mlp_ratio")
    )
    # timm's smallest patches have four pixels a side.
    patch = 32 * 32 if resnet else 4 * 4 if other else _area(tower.get("patch_size", 0), "patch")
    patches = _area(tower.get("image_size", 0), "image_size") / max(patch, 1)
    if layers > MOST_BLOCKS or context > MOST_CONTEXT or patches > MOST_PATCHES:
        return math.inf
    if other:
        return 2 * embed**2 if tower.get("timm_proj") == "mlp" else 0
    if tower.get("hf_model_name"):
        return embed**2 / 2 if tower.get("hf_proj_type", "mlp") == "mlp" else 0
    if resnet:
        last = 32 * width
        return 4 * layers * width**2 + last * (3 * last + patches + embed)
    if tower.get("attentional_pool"):
        queries = _size(tower.get("attn_pooler_queries", 256), "attn_pooler_queries")
        vocabulary += embed * (queries + embed) / max(width, 1)
    if tower.get("proj_type") == "none":
        embed = 0
    rest = vocabulary + context + patches + 3 * patch + embed
    return layers * width**2 * (4 + 2 * mlp) + width * rest
