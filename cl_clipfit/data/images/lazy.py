"""Images in files, and images that are decoded on demand."""

import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from cl_clipfit.data.images.decode import THREADS, in_threads, open_in_thread, quiet_pil
from cl_clipfit.errors import UserError

HASHED_BYTES = 2 << 30  # per list of files; more would take minutes to read


class Fit(Protocol):
    """How an image is brought to the input size of the image tower; see `clip.preprocess`."""

    @property
    def size(self) -> tuple[int, int]:
        """Return the output height and width."""

    def fit_image(self, image: Image.Image) -> Tensor:
        """Return an RGB image as uint8 (3, *size)."""

    def fit(self, images: Tensor) -> Tensor:
        """Return images uint8 (B, 3, H, W) as uint8 (B, 3, *size)."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files of any size and kind, not read yet, as listed by a scenario's `load`.

    Attributes:
        paths: one file per image.
    """

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def digest(self) -> bytes:
        """Return a hash of the files' contents, or of names and sizes beyond `HASHED_BYTES`."""
        return _hash_files(self)

    @cached_property
    def sizes(self) -> list[int]:
        """Return the size of each file in bytes; 0 for one that cannot be read."""
        return [_size(path) for path in self.paths]

    def __getitem__(self, index: Tensor) -> "ImageFiles":
        """Select files by index or by a mask (N,)."""
        return ImageFiles(tuple(self.paths[i] for i in torch.arange(len(self))[index].tolist()))


class LazyImages:
    """A stand-in for a uint8 tensor (N, 3, *size) that decodes images on demand.

    It supports `len`, `shape`, an index (one image), a slice, mask or indices (lazy images again),
    `split`, and `to(device)`, which returns a tensor.

    Args:
        parts: files, or tensors uint8 (n, 3, H, W) of any size, in order.
        fit: resizes them to one size; None if the size is not known yet.
        index: selects images, in this order; default all.
    """

    dtype = torch.uint8

    def __init__(
        self, parts: Sequence["ImageFiles | Tensor"], fit: Fit | None, index: Tensor | None = None
    ) -> None:
        self.parts, self._fit = tuple(parts), fit
        self._starts = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
        self.index = torch.arange(int(self._starts[-1])) if index is None else index

    @property
    def fit(self) -> Fit:
        """How images are brought to one size."""
        if self._fit is None:
            raise ValueError("images of several sizes need a target size before they are read")
        return self._fit

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> torch.Size:
        """Return (N, 3, H, W), as a tensor would."""
        return torch.Size((len(self), 3, *self.fit.size))

    def dim(self) -> int:
        """Return 4, as a tensor would."""
        return 4

    def __getitem__(self, index: int | slice | Tensor) -> "Tensor | LazyImages":
        if isinstance(index, int):
            with quiet_pil():
                return self._read(index)
        return LazyImages(self.parts, self._fit, self.index[index])

    def split(self, size: int) -> "list[LazyImages]":
        """Split into runs of `size` images, which are decoded when `to` is called."""
        return [LazyImages(self.parts, self._fit, part) for part in self.index.split(size)]

    def to(self, device: torch.device | str) -> Tensor:
        """Decode all, in parallel: uint8 (N, 3, *size) on a device.

        Raises:
            UserError: one cannot be read.
        """
        images, bad = self.decode()
        if bad:
            raise UserError(f"{self.name(bad[0][0])} cannot be read as an image: {bad[0][1]}")
        return images.to(device)

    def decode(
        self, progress: Callable[[str, int, int], None] | None = None
    ) -> tuple[Tensor, list[tuple[int, str]]]:
        """Decode all, in parallel.

        Args:
            progress: called with a label, the number of images so far, and the total.

        Returns:
            uint8 (N, 3, *size), zero for files that cannot be read; index and reason of each.
        """
        out = torch.zeros(self.shape, dtype=torch.uint8)

        def work(row: int) -> str:
            try:
                out[row] = self._read(row)
            except UserError as error:
                return error.reason
            return ""

        return out, in_threads(work, len(self), "reading images", progress or (lambda *_: None))

    def name(self, row: int) -> Path | None:
        """Return the file of an image, if it has one."""
        source, at = self._locate(row)
        return source.paths[at] if isinstance(source, ImageFiles) else None

    def _locate(self, row: int) -> "tuple[ImageFiles | Tensor, int]":
        index = int(self.index[row])
        part = int(torch.searchsorted(self._starts, index, right=True)) - 1
        return self.parts[part], index - int(self._starts[part])

    def _read(self, row: int) -> Tensor:
        source, at = self._locate(row)
        if isinstance(source, ImageFiles):
            return self.fit.fit_image(open_in_thread(source.paths[at]))
        return self.fit.fit(source[at : at + 1])[0].to(torch.uint8)


Images: TypeAlias = Tensor | ImageFiles | LazyImages


def concatenate(images: Sequence[Images]) -> Images:
    """Join sets of images; different sizes are brought to one size when they are read."""
    tensors = [part for part in images if isinstance(part, Tensor)]
    if len(tensors) == len(images) and len({part.shape[1:] for part in tensors}) == 1:
        return torch.cat(tensors)
    parts: list[ImageFiles | Tensor] = []
    index: list[Tensor] = []
    count = 0
    for part in images:
        of_part = part.index if isinstance(part, LazyImages) else torch.arange(len(part))
        index.append(of_part + count)
        inner = part.parts if isinstance(part, LazyImages) else (part,)
        parts += inner
        count += sum(map(len, inner))
    return LazyImages(parts, None, torch.cat(index))


def images_digest(images: Images, digest: Any) -> None:
    """Feed images to a `hashlib` object: values, file contents, or names and sizes."""
    if isinstance(images, Tensor):
        digest.update(f"{tuple(images.shape)}".encode())
        digest.update(images.contiguous().view(torch.uint8).view(-1).numpy().data)
        return
    parts = [images] if isinstance(images, ImageFiles) else images.parts
    for part in parts:
        if isinstance(part, Tensor):
            images_digest(part, digest)
        else:
            digest.update(part.digest)
    if isinstance(images, LazyImages):
        digest.update(images.index.numpy().data)


def hashed_by(images: Images) -> str:
    """Return what `images_digest` reads: "contents", or "names and sizes" for large lists."""
    parts = images.parts if isinstance(images, LazyImages) else [images]
    large = any(sum(p.sizes) > HASHED_BYTES for p in parts if isinstance(p, ImageFiles))
    return "names and sizes" if large else "contents"


def _hash_files(files: ImageFiles) -> bytes:
    digest = hashlib.sha256()
    if sum(files.sizes) > HASHED_BYTES:
        root = os.path.commonpath(files.paths)
        names = [str(path)[len(root) + 1 :] for path in files.paths]
        digest.update(repr(list(zip(names, files.sizes, strict=True))).encode())
        return digest.digest()
    with ThreadPoolExecutor(THREADS) as pool:
        for file_digest in pool.map(_file_digest, files.paths):
            digest.update(file_digest)
    return digest.digest()


def _size(path: Path) -> int:
    try:
        status = path.stat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _file_digest(path: Path) -> bytes:
    """Hash a file; one that cannot be read is hashed as such: it is reported, or left out, later.

    Only regular files are opened: a pipe may never end.
    """
    try:
        if path.is_file():
            return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        pass
    return b"unreadable"
