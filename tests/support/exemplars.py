"""Find what a method uses of the images of old tasks: the images themselves, or their features."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_clipfit import CLIPClassifier, CLIPStrategy
from cl_clipfit.clip.encoders.towers import Towers

_DEEP = 6
_CLOSE = 1e-4  # relative to features of unit length; class means are much further from any image


@dataclass
class OldImages:
    """Images of a task that is over, as the towers take them, and their features.

    Attributes:
        images: (N, 3, H, W) of uint8.
        model: the pretrained classifier.
        encoded: numbers of the images that a tower has encoded again.
    """

    images: Tensor
    model: CLIPClassifier
    encoded: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        with torch.no_grad():
            self.pixels = self.model.preprocess(self.images)
            self.features = self.model.image_features(self.images)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note in a `with` block which of them any classifier encodes."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("encode_images", "embed", "encode_with_tokens"):
                patch.setattr(Towers, name, self._watch(getattr(Towers, name)))
            yield

    def _watch(self, real: Any) -> Any:
        def encode(towers: Towers, clip: Any, images: Tensor, *more: Any) -> Any:
            self.encoded |= self.among(images, self.pixels)
            return real(towers, clip, images, *more)

        return encode

    @staticmethod
    def among(rows: Tensor, old: Tensor) -> set[int]:
        """Return the numbers of old rows that are among rows, up to rounding."""
        if rows.shape[1:] != old.shape[1:] or not len(rows):
            return set()
        flat, own = rows.detach().flatten(1).double(), old.flatten(1).double()
        scale = own.norm(dim=1).mean()
        nearest = torch.cdist(own, flat).amin(1)
        return set((nearest < _CLOSE * scale).nonzero().flatten().tolist())

    def kept(self, strategy: CLIPStrategy) -> dict[str, set[int]]:
        """Return which images, and which of their features, a method keeps."""
        found: dict[str, set[int]] = {"images": set(), "features": set()}
        for tensor in tensors_of(strategy):
            for old, kind in (
                (self.images, "images"), (self.pixels, "images"), (self.features, "features")
            ):  # fmt: skip
                if tensor.dim() >= old.dim():
                    rows = tensor.reshape(-1, *tensor.shape[tensor.dim() - old.dim() + 1 :])
                    found[kind] |= self.among(rows, old)
        return found


def tensors_of(strategy: CLIPStrategy) -> list[Tensor]:
    """Return the tensors of a method: its state, its attributes and what it added to the model."""
    model = strategy.model
    added = [p for n, p in model.named_parameters() if n not in model.backbone_names]
    buffers = [b for n, b in model.named_buffers() if n not in strategy.model_buffers]
    own = {n: v for n, v in vars(strategy).items() if n not in strategy.common_attributes}
    return [*added, *buffers, *_walk([own, strategy.state_dict(), strategy.head_state()])]


def _walk(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Yield the tensors in mappings, sequences and plain objects."""
    if isinstance(value, Tensor):
        yield value
    elif depth < _DEEP and isinstance(value, Mapping):
        yield from (tensor for item in value.values() for tensor in _walk(item, depth + 1))
    elif depth < _DEEP and isinstance(value, list | tuple | set):
        yield from (tensor for item in value for tensor in _walk(item, depth + 1))
    elif depth < _DEEP and _is_plain_object(value):
        yield from _walk(getattr(value, "__dict__", {}), depth + 1)


def _is_plain_object(value: Any) -> bool:
    """Return whether a value is of a type of the package or of a test, but no method or model."""
    known = type(value).__module__.startswith(("cl_clipfit", "tests"))
    return known and not isinstance(value, CLIPStrategy | CLIPClassifier)
