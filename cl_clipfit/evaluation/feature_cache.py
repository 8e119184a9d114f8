"""Features on disk, addressed by a hash of everything they were computed from."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cl_clipfit.data.fetch.download import cache_folder
from cl_clipfit.data.images.lazy import Images, LazyImages, hashed_by, images_digest
from cl_clipfit.errors import UserError
from cl_clipfit.storage.files import reading, write_atomic


def images_key(images: Images) -> str:
    """Return a hash over images: of their values or files, or of the state of very many files.

    The state is path, size, modification time and inode change time; the last cannot be forged
    by copying time stamps.

    Raises:
        UserError: a file cannot be read.
    """
    digest = hashlib.sha256()
    if hashed_by(images) == "contents":
        images_digest(images, digest)
        return digest.hexdigest()
    assert isinstance(images, LazyImages)
    for row in range(len(images)):
        digest.update(_state(images.name(row)))
    for part in images.parts:
        if isinstance(part, Tensor):
            images_digest(part, digest)
    digest.update(images.index.numpy().tobytes())
    return digest.hexdigest()


def _state(path: Path | None) -> bytes:
    if path is None:
        return b""
    with reading(path):
        status = path.stat()
    times = status.st_mtime_ns, status.st_ctime_ns
    return repr((str(path.resolve()), status.st_size, times)).encode()


class FeatureCache:
    """Feature matrices by key.

    Args:
        folder: of the cache; by default "features" in the data folder. It may be deleted at any
            time.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def get(self, key: Mapping[str, Any], rows: int) -> Tensor | None:
        """Return the features (rows, d) of a key, or None if they are missing or damaged."""
        text = _text(key)
        try:
            data = self._file(text).read_bytes()
            features = safetensors.torch.load(data)["features"]
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        except (UserError, OSError, KeyError, ValueError, safetensors.SafetensorError):
            return None
        intact = header == {"key": text, "sha256": _digest(features)}
        return features if intact and features.dim() == 2 and len(features) == rows else None

    def has(self, key: Mapping[str, Any]) -> bool:
        """Return whether there is a file for a key, which `get` may still find to be damaged."""
        try:
            return self._file(_text(key)).is_file()
        except UserError:  # there is no folder for data
            return False

    def put(self, key: Mapping[str, Any], features: Tensor) -> None:
        """Store features (N, d).

        Raises:
            UserError: there is no such folder, or it cannot be written.
        """
        text, features = _text(key), features.contiguous()
        header = {"key": text, "sha256": _digest(features)}
        data = safetensors.torch.save({"features": features}, header)
        write_atomic(self._file(text), data)

    def _file(self, text: str) -> Path:
        folder = self._folder or cache_folder() / "features"
        return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _digest(features: Tensor) -> str:
    values = features.contiguous().view(torch.uint8).numpy().data
    return hashlib.sha256(repr(tuple(features.shape)).encode() + values).hexdigest()
