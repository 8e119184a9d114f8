"""Load the images of a stream into memory if they fit, and find those that cannot be read."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from cl_clipfit.data.images.decode import check_images, report_bad
from cl_clipfit.data.images.lazy import Fit, ImageFiles, LazyImages
from cl_clipfit.data.source import DataRequest, ImageSet, Source
from cl_clipfit.errors import UserError
from cl_clipfit.runtime.launch import place

MEMORY_SHARE = 0.5  # of the machine's memory, for all images of a command


def memory_budget() -> int:
    """Return how many bytes of images to keep in memory: CL_CLIPFIT_IMAGE_GIB, or half of RAM.

    Several processes on a machine share that half.

    Raises:
        UserError: the variable is not a number from 0 up.
    """
    given = os.environ.get("CL_CLIPFIT_IMAGE_GIB")
    if given is not None:
        try:
            if float(given) >= 0:
                return int(float(given) * 2**30)
        except (ValueError, OverflowError):
            pass
        raise UserError(f"CL_CLIPFIT_IMAGE_GIB={given}: expected a number of GiB, 0 or more")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(MEMORY_SHARE * memory / place().here)


def sized(source: Source, fit: Fit) -> Source:
    """Have files, and images of several sizes, resized to the model's input size when read."""

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
    """Reads sets of images, each set only once.

    Attributes:
        request: notified of progress.
        skip_bad: leave out unreadable images instead of stopping.
        left_out: the images left out, each with the reason.
        probes_left_out: those of them that are of probes.
        bytes_kept: size of the images in memory.
    """

    request: DataRequest
    skip_bad: bool = False
    left_out: list[str] = field(default_factory=list)
    probes_left_out: Sequence[str] = ()
    bytes_kept: int = 0
    _done: dict[tuple[object, ...], "_Read"] = field(default_factory=dict)

    def __call__(self, data: ImageSet) -> ImageSet:
        """Return a set with its images in memory, as a tensor, if they fit; else unchanged.

        Raises:
            UserError: images cannot be read, and unreadable ones are not to be left out.
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
            self.left_out += done.left_out
        return replace(data, images=done.images)

    def _read(self, images: LazyImages) -> "_Read":
        size = images.shape.numel()
        result: Tensor | LazyImages = images
        if self.bytes_kept + size <= memory_budget():
            self.bytes_kept += size
            result, bad = images.decode(self.request.count)
        else:
            self.request.note(
                f"{len(images):,} images take {size / 2**30:.1f} GiB of memory:"
                " they are decoded again at every use"
            )
            bad = _check(images, self.request)
        if not bad:
            return _Read(images.parts, result)
        if not self.skip_bad:
            raise UserError(report_bad(bad, [images.name(i) or Path() for i in range(len(images))]))
        left_out = [f"{self._place(images.name(row))}: {reason}" for row, reason in bad]
        self.request.note(f"{len(bad)} unreadable images left out, the first: {left_out[0]}")
        keep = torch.ones(len(images), dtype=torch.bool)
        keep[[i for i, _ in bad]] = False
        return _Read(images.parts, result[keep], keep, left_out)

    def _place(self, file: Path | None) -> Path | None:
        """Return a file's place in the data folder, if it is in there."""
        root = self.request.data_dir
        return file.relative_to(root) if file and root and file.is_relative_to(root) else file


@dataclass(frozen=True)
class _Read:
    """A set of images that was read.

    Attributes:
        parts: the parts it was read from; a reference is kept so that their ids stay unique.
        images: the readable images.
        keep: mask of the readable images; None if all are.
        left_out: the other images, each with the reason.
    """

    parts: tuple[object, ...]
    images: Tensor | LazyImages
    keep: Tensor | None = None
    left_out: Sequence[str] = ()


def _check(images: LazyImages, request: DataRequest) -> list[tuple[int, str]]:
    """Check the headers of those images that are files."""
    rows = [(i, path) for i in range(len(images)) if (path := images.name(i)) is not None]
    bad = check_images([path for _, path in rows], request.count)
    return [(rows[i][0], reason) for i, reason in bad]
