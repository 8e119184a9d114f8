"""`run.py predict`: classify images that a finished run has never seen."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from cl_clipfit.data.formats.folders import images_below
from cl_clipfit.data.images.decode import check_images
from cl_clipfit.errors import UserError, printable
from cl_clipfit.experiment.load import Labels, LoadedRun, load_run
from cl_clipfit.report.csv_tables import text_cell
from cl_clipfit.report.display import ConsoleDisplay, say
from cl_clipfit.storage.calibration import read_threshold
from cl_clipfit.storage.files import csv_text, write_atomic

UNKNOWN = "unknown"  # in place of a class
_AT_ONCE = 256  # files whose predictions are made before the next ones are read


def predict(
    path: Path, images: Sequence[Path], out: Console, err: Console, *, top: int = 5,
    unknown: bool = False, output: Path | None = None, device: str | None = None,
) -> None:  # fmt: skip
    """Print the most probable classes of images: a line for each file, or CSV for folders.

    Args:
        path: folder of the run.
        images: files, and folders whose images are found at any depth.
        out: where predictions go.
        err: where notes go.
        top: classes per image.
        unknown: leave images open that fit no class.
        output: a CSV file to write in place of printing.
        device: where to compute.

    Raises:
        UserError: nothing can be read as an image, or the run cannot be loaded.
    """
    display = ConsoleDisplay(err)
    files = _found(images)
    bad = dict(check_images(files, display.count))
    display.stop()
    for index, reason in bad.items():
        display.warn(f"{files[index]} left out: {reason}")
    good = [file for index, file in enumerate(files) if index not in bad]
    if not good:
        raise UserError(f"none of {len(files)} files can be read as an image")
    model = load_run(path, display, device)
    if unknown:
        read_threshold(model.path)  # refused before any image is encoded
    rows = _predictions(model, good, top, unknown)
    if output is None and not any(image.is_dir() for image in images):
        for file, labels in rows:
            shown = ", ".join(f"{name} {100 * p:.1f} %" for name, p in labels)
            say(out, f"{file}: {shown or UNKNOWN}")
        return
    text = _csv(rows, min(top, len(model.classes)))
    if output is None:
        out.print(text.rstrip(), soft_wrap=True, markup=False, highlight=False)
        return
    write_atomic(output, text)
    say(err, f"written: {output}, {len(good)} images")


def _found(images: Sequence[Path]) -> list[Path]:
    """Return the files that are named, and those below folders."""
    files: list[Path] = []
    for image in images:
        if not image.exists():
            raise UserError(f"{image}: there is no such file or folder")
        below = images_below(image) if image.is_dir() else [image]
        if not below:
            raise UserError(f"{image}: no image is in this folder")
        files += below
    return list(dict.fromkeys(files))


def _predictions(
    model: LoadedRun, files: Sequence[Path], top: int, unknown: bool
) -> Iterator[tuple[Path, Labels]]:
    for start in range(0, len(files), _AT_ONCE):
        batch = files[start : start + _AT_ONCE]
        yield from zip(batch, model.predict(batch, top, unknown), strict=True)


def _csv(rows: Iterator[tuple[Path, Labels]], top: int) -> str:
    head = [f"{what}_{n}" for n in range(1, top + 1) for what in ("class", "probability")]
    lines = []
    for file, labels in rows:
        cells = [cell for name, p in labels for cell in (text_cell(name), f"{p:.4f}")]
        cells = cells or [UNKNOWN, *[""] * (len(head) - 1)]
        lines.append([text_cell(printable(str(file))), *cells])
    return csv_text(["image", *head], lines)
