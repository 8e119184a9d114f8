"""Bring the images of a stream into memory where they fit, and find those that cannot be read."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from cl_clipfit.data.images.decode import check_images, report_bad
from cl_clipfit.data.images.lazy import Fit, ImageFiles, LazyImages
from cl_clipfit.data.source import DataRequest, ImageSet, Source
from cl_clipfit.errors import UserError

MEMORY_SHARE = 0.5  # of the machine's memory, for all images of a command


def memory_budget() -> int:
    """Return how many bytes of images are kept in memory: CL_CLIPFIT_IMAGE_GIB, or half of it.

    Raises:
        UserError: the variable is no number.
    """
    given = os.environ.get("CL_CLIPFIT_IMAGE_GIB")
    if given is not None:
        try:
            if float(given) >= 0:
                return int(float(given) * 2**30)
        except (ValueError, OverflowError):
            pass
        raise UserError(f"CL_CLIPFIT_IMAGE_GIB={given}: expected a number of GiB, from 0 on")
    return int(MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def sized(source: Source, fit: Fit) -> Source:
    """Let files, and images of several sizes, come out at the model's size when they are read."""

    def fitted(data: ImageSet) -> ImageSet:
        images = data.images
        if isinstance(images, ImageFiles):
            return replace(data, images=LazyImages([images], fit))
        if isinstance(images, LazyImages):
            return replace(data, images=LazyImages(images.parts, fit, images.index))
        return data

    return replace(source, train=fitted(source.train), test=fitted(source.test))


@dataclass
class ImageLoader:
    """Reads sets of images, the same set once.

    Attributes:
        request: told about progress.
        skip_bad: leave unreadable images out rather than stop.
        skipped: how many were left out.
        bytes_kept: of images in memory.
    """

    request: DataRequest
    skip_bad: bool = False
    skipped: int = 0
    bytes_kept: int = 0
    _done: dict[tuple[object, ...], "_Read"] = field(default_factory=dict)

    def __call__(self, data: ImageSet) -> ImageSet:
        """Return a set with its images in memory, as a tensor, where they fit; else as they were.

        Raises:
            UserError: images that cannot be read, unless these are left out.
        """
        images = data.images
        if not isinstance(images, LazyImages):
            return data
        key = (*map(id, images.parts), images.index.numpy().tobytes())
        if key not in self._done:
            self._done[key] = self._read(images)
        done = self._done[key]
        if done.keep is not None:
            data = data.subset(done.keep)
            self.skipped += int((~done.keep).sum())
        return replace(data, images=done.images)

    def _read(self, images: LazyImages) -> "_Read":
        size = images.shape.numel()
        found: Tensor | LazyImages = images
        if self.bytes_kept + size <= memory_budget():
            self.bytes_kept += size
            found, bad = images.decode(self.request.count)
        else:
            self.request.note(
                f"{len(images):,} images take {size / 2**30:.1f} GiB of memory:"
                " they are decoded again whenever they are needed"
            )
            bad = _check(images, self.request)
        if not bad:
            return _Read(images.parts, found)
        if not self.skip_bad:
            raise UserError(report_bad(bad, [images.name(i) or Path() for i in range(len(images))]))
        self.request.note(f"{len(bad)} unreadable images left out, the first: {bad[0][1]}")
        keep = torch.ones(len(images), dtype=torch.bool)
        keep[[i for i, _ in bad]] = False
        return _Read(images.parts, found[keep], keep)


@dataclass(frozen=True)
class _Read:
    """What was read once.

    Attributes:
        parts: where from; held, so that their ids stay theirs.
        images: those that can be read.
        keep: mask of these; None where all can.
    """

    parts: tuple[object, ...]
    images: Tensor | LazyImages
    keep: Tensor | None = None


def _check(images: LazyImages, request: DataRequest) -> list[tuple[int, str]]:
    """Look at the headers of the files among images."""
    rows = [(i, path) for i in range(len(images)) if (path := images.name(i)) is not None]
    bad = check_images([path for _, path in rows], request.count)
    return [(rows[i][0], reason) for i, reason in bad]
