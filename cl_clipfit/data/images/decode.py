"""Decode image files of every common kind to 8-bit RGB, many at a time."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cl_clipfit.errors import UserError

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# PIL supports many more, but would start Ghostscript, an external program, on an EPS file.
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
LONGEST = 50  # times as long as wide
LONGEST_RUN = 32  # files that a thread takes at a time
Progress = Callable[[str, int, int], None]


def _open(file: Path) -> Image.Image:
    """Read the header. May raise any exception, as PIL does on damaged files."""
    if not file.is_file():
        raise ValueError(_no_file(file))
    if file.stat().st_size == 0:
        raise ValueError("the file is empty")
    image = Image.open(file, formats=FORMATS)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        image.close()
        raise ValueError(f"{image.width}x{image.height} pixels, more than {limit:,} in all")
    if max(image.size) > LONGEST * min(image.size):  # its short side is brought to the model's
        image.close()
        raise ValueError(f"{image.width}x{image.height} pixels, more than {LONGEST} to 1: crop it")
    if image.mode == "F":
        image.close()
        raise ValueError("floating-point pixels have no fixed range; convert it to 8 or 16 bits")
    return image


def _no_file(path: Path) -> str:
    """Return why a path is no regular file. May raise an `OSError`, as for a locked folder."""
    if path.is_dir():
        next(path.iterdir(), None)
        return "a folder, not a file"
    if path.is_symlink() and not path.exists():
        return "a link whose target is missing"
    return "not a regular file" if path.exists() else "there is no such file"


def _decode(file: Path) -> Image.Image:
    """Read a file. May raise any exception, as PIL does on damaged files."""
    with _open(file) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        return _from_16_bits(upright).convert("RGB")
    if "transparency" in upright.info:
        upright = upright.convert("RGBA")  # PIL asks for this step
    return upright.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255, to the nearest: 65535 is 255 x 257."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("whole numbers beyond 16 bits; convert it to 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _reason(error: Exception) -> str:
    """Return one line that says why a file cannot be read."""
    if isinstance(error, UnidentifiedImageError):  # its text repeats the path
        return "not an image of a supported format"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels"
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    return (text or type(error).__name__)[:200]


@contextlib.contextmanager
def quiet_pil() -> Iterator[None]:
    """Ignore what PIL remarks on odd metadata and large sizes, for a `with` block.

    Filters are those of all threads: enter it in the one that starts the others.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def open_image(file: Path) -> Image.Image:
    """Read an image file as 8-bit RGB, upright as its EXIF orientation says, the first frame.

    Transparency is dropped, as `open_clip` does; 16-bit grey is scaled.

    Raises:
        UserError: as `open_in_thread`.
    """
    with quiet_pil():
        return open_in_thread(file)


def open_in_thread(file: Path) -> Image.Image:
    """Read an image file as `open_image` does, inside of `in_threads` or `quiet_pil`.

    Raises:
        UserError: it cannot be read, has floating-point pixels, or more than
            `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    try:
        return _decode(file)
    except Exception as error:  # a damaged file may raise anything
        reason = _reason(error)
        raise UserError(f"{file} cannot be read as an image: {reason}", reason=reason) from error


def check_images(paths: Sequence[Path], progress: Progress) -> list[tuple[int, str]]:
    """Read the headers of all files, in parallel.

    Args:
        paths: files.
        progress: called with a label, the number of files so far, and the total.

    Returns:
        index and reason of each file that cannot be read.
    """

    def check(index: int) -> str:
        try:
            _open(paths[index]).close()
        except Exception as error:
            return _reason(error)
        return ""

    return in_threads(check, len(paths), "checking images", progress)


def in_threads(
    work: Callable[[int], str], count: int, label: str, progress: Progress
) -> list[tuple[int, str]]:
    """Call `work` with 0..count-1, in parallel; return each index and reason of a failure."""
    size = max(1, min(LONGEST_RUN, count // (4 * THREADS)))  # a small batch keeps all threads busy

    def run(start: int) -> list[tuple[int, str]]:
        reasons = [(i, work(i)) for i in range(start, min(start + size, count))]
        return [(i, reason) for i, reason in reasons if reason]

    bad: list[tuple[int, str]] = []
    starts, pool = range(0, count, size), ThreadPoolExecutor(THREADS)
    try:
        with quiet_pil():
            for start, failures in zip(starts, pool.map(run, starts), strict=True):
                bad += failures
                progress(label, min(start + size, count), count)
    finally:  # Ctrl-C must not wait for the rest
        pool.shutdown(cancel_futures=True)
    return bad


def report_bad(bad: Sequence[tuple[int, str]], paths: Sequence[Path]) -> str:
    """Return one line about files that cannot be read: how many, and the first five.

    Args:
        bad: index and reason of each, as `check_images` returns.
        paths: all files.
    """
    first = "; ".join(f"{paths[index]}: {reason}" for index, reason in bad[:5])
    more = "; ..." if len(bad) > 5 else ""
    return (
        f"{len(bad):,} of {len(paths):,} images cannot be read ({first}{more}): repair or remove"
        " them, or leave them out with --skip-bad-images"
    )
