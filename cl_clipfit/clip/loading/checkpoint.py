"""Read a file of weights as people save them: wrapped, prefixed, in half precision."""

import contextlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import open_clip.factory
import safetensors.torch
import torch
from torch import Tensor, nn

from cl_clipfit.clip.loading.untrusted_weights import (
    check_checkpoint,
    kind_of,
    read_archive,
    refusing,
)
from cl_clipfit.clip.loading.weights_pickle import StoredTensor

WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys of the weights in a checkpoint
_MOST_WRAPPERS = 3
_TOWERS = ("visual", "transformer", "text")  # parts of a model, which are no prefix of it
_SETTINGS = ("input_resolution", "context_length", "vocab_size")  # beside OpenAI's weights


@contextlib.contextmanager
def reading_checkpoints() -> Iterator[dict[str, Tensor]]:
    """Let open_clip read weights through `read_weights` in a `with` block.

    Yields:
        the weights that were read; empty before.
    """
    weights: dict[str, Tensor] = {}

    def read(file: str, *_: Any, **__: Any) -> dict[str, Tensor]:
        weights.update(read_weights(Path(file)))
        return dict(weights)  # open_clip changes what it gets

    original, open_clip.factory.load_state_dict = open_clip.factory.load_state_dict, read
    try:
        yield weights
    finally:
        open_clip.factory.load_state_dict = original


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the weights of a file by name, without the wrappers and prefixes around them.

    Files are known by their content, whatever their name: safetensors, or `torch.save` with any
    pickle protocol.

    Raises:
        UserError: the file is refused (see `check_checkpoint`) or holds no weights.
    """
    with refusing(file):
        with file.open("rb") as opened:
            kind = kind_of(opened)
            if kind == "zip":
                weights = _read_zip(file)
            else:
                check_checkpoint(file)
                weights = _unwrapped(
                    safetensors.torch.load_file(file)
                    if kind == "safetensors"
                    else torch.load(opened, map_location="cpu", weights_only=True)
                )
        weights = _without_prefix(weights)
        # open_clip interpolates positions, which PyTorch cannot in half precision.
        return {
            name: value.float() if "pos" in name and value.is_floating_point() else value
            for name, value in weights.items()
            if name not in _SETTINGS
        }


def _read_zip(file: Path) -> dict[str, Tensor]:
    checked = read_archive(file)
    if checked is None:
        raise ValueError("it is an archive of NumPy: its name must end in .npz")
    storages: dict[str, Tensor] = {}
    tensors = {}
    with zipfile.ZipFile(file) as archive:
        for name, stored in _unwrapped(checked.content).items():
            key, dtype, count = stored.storage
            if key not in storages:
                data = bytearray(archive.read(checked.members[key]))
                storages[key] = torch.frombuffer(data, dtype=torch.uint8)
            values = storages[key][: count * dtype.itemsize].view(dtype)
            tensors[name] = values.as_strided(stored.shape, stored.strides, stored.offset)
    return tensors


def _unwrapped(content: Any) -> dict[str, Any]:
    """Return the tensors of a checkpoint, or their stand-ins, by name."""
    for _ in range(_MOST_WRAPPERS):
        content = _inner(content) or content
    tensors = {name: value for name, value in _items(content) if isinstance(name, str)}
    if not tensors:
        raise ValueError("it holds no weights by name")
    return tensors


def _inner(content: Any) -> Mapping[Any, Any] | None:
    """Return the mapping of a usual name in a checkpoint, or else its only mapping of tensors."""
    if not isinstance(content, Mapping):
        return None
    mappings = {key: value for key, value in content.items() if isinstance(value, Mapping)}
    for key in WRAPPERS:
        if key in mappings:
            return mappings[key]
    wrapped = [value for value in mappings.values() if _items(value)]
    return wrapped[0] if len(wrapped) == 1 and not _items(content) else None


def _items(content: Any) -> list[tuple[Any, Any]]:
    """Return the items of a mapping that are tensors."""
    if not isinstance(content, Mapping):
        return []
    return [(k, value) for k, value in content.items() if isinstance(value, Tensor | StoredTensor)]


def _without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove what all names start with, such as `module.`, `_orig_mod.`, `model.`."""
    while True:
        starts = {name.partition(".")[0] if "." in name else "" for name in weights}
        start = starts.pop()
        if starts or not start or start in _TOWERS:
            return weights
        weights = {name[len(start) + 1 :]: value for name, value in weights.items()}


def interpolated(clip: nn.Module, weights: Mapping[str, Tensor], source: str) -> list[str]:
    """Return a warning for every embedding of positions that open_clip resized to the model's."""
    return [
        f"{source}: {name} was resized from {list(given.shape)} to {list(value.shape)}: the weights"
        " are of another image size or length of text, and features differ from theirs"
        for name, value in clip.state_dict().items()
        if (given := weights.get(name, weights.get(name.removeprefix("text.")))) is not None
        and "pos" in name
        and given.shape != value.shape
    ]


def explain_mismatch(error: Exception) -> str:
    """Return why weights do not fit a model: the first unexpected and the first missing name.

    Args:
        error: of `load_state_dict`, whose message lists all of them.
    """
    text = str(error)
    if "width changed" in text:  # open_clip's assertion
        return "its text tower has another width: the weights are of another architecture"
    reasons = []
    for kind in ("Unexpected", "Missing"):
        if names := re.search(rf'{kind} key\(s\) in state_dict: ("[^"]*"(?:, "[^"]*")*)', text):
            first, *others = re.findall(r'"([^"]*)"', names[1])
            more = f" and {len(others)} others" if others else ""
            reasons.append(f"{kind.lower()} '{first:.80}'{more}")
    if size := re.search(r"size mismatch for (\S+): .*?Size\((.*?)\).*?Size\((.*?)\)", text):
        reasons.append(f"'{size[1]}' has shape {size[2]} in the file and {size[3]} in the model")
    return "; ".join(reasons) or " ".join(text.split())[:200] or type(error).__name__
