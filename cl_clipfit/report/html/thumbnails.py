"""`thumbnails/`: small pictures of a few test images, for the examples of a report.

They are chosen by what became of their predictions, up to `_EACH` of each kind, so that a report
shows what a method forgot, learned, kept and never knew. A file's name is the number of the test
image.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cl_clipfit.metrics.predictions import Predictions
from cl_clipfit.storage.files import read_bytes, write_atomic
from cl_clipfit.storage.run_folder import THUMBNAILS

FATES = ("forgotten", "never right", "learned", "right before and at the end")
PIXELS = 48  # the longer side
_EACH = 6  # images of each kind
_SEARCHED = 2000  # images of a kind that take turns by task
_MOST = 100  # pictures that a report takes in
_LARGEST = 1 << 16  # bytes of each


def fates(rows: Sequence[Predictions]) -> NDArray[np.int64]:
    """Return what became of the prediction for each image, (N,): an index of `FATES`.

    Forgotten: wrong at the end, but right before training or after the image's own task.
    """
    before, end = rows[0].right, rows[-1].right
    known = before | after_own_task(rows).right
    return np.select([~end & known, ~end, ~before], [0, 1, 2], 3)


def after_own_task(rows: Sequence[Predictions]) -> Predictions:
    """Return the prediction for each image in the row after its own task, or the last row."""
    own = np.minimum(rows[0].tasks + 1, len(rows) - 1)
    images = np.arange(len(own))
    top = np.stack([row.top for row in rows])[own, images]
    scores = np.stack([row.scores for row in rows])[own, images]
    return Predictions(rows[0].labels, top, scores, rows[0].tasks)


def chosen(rows: Sequence[Predictions]) -> list[int]:
    """Return the test images to show, ascending: the first of each kind from every task in turn."""
    kinds, images = fates(rows), []
    for kind in range(len(FATES)):
        (of_kind,) = (kinds == kind).nonzero()
        tasks = rows[0].tasks[of_kind]
        turn = [int((tasks[:at] == task).sum()) for at, task in enumerate(tasks[:_SEARCHED])]
        order = sorted(range(len(turn)), key=lambda at: (turn[at], tasks[at], at))
        images += [int(of_kind[at]) for at in order[:_EACH]]
    return sorted(images)


def save_thumbnails(images: Any, rows: Sequence[Predictions], run: Path) -> None:
    """Write the pictures of a run; nothing if it kept no predictions or knows features only.

    Args:
        images: the test images, uint8 (N, 3, H, W) or a stand-in; or features (N, d).
        rows: the predictions for them, one entry for each row of the tables.
        run: its folder.

    Raises:
        UserError: the folder cannot be written.
    """
    if not rows or images.dim() != 4:
        return
    for number in chosen(rows):
        picture = Image.fromarray(_pixels(images, number))
        picture.thumbnail((PIXELS, PIXELS))
        data = io.BytesIO()
        picture.save(data, "PNG", optimize=True)
        write_atomic(run / THUMBNAILS / f"{number:06d}.png", data.getvalue())


def _pixels(images: Any, number: int) -> NDArray[np.uint8]:
    image = images[number]
    return image.to("cpu").permute(1, 2, 0).contiguous().numpy()


def read_thumbnails(run: Path) -> dict[int, Image.Image]:
    """Return the pictures of a run by the number of their test image.

    Raises:
        UserError: a file cannot be read, or is not such a picture.
    """
    found = {}
    for file in sorted((run / THUMBNAILS).glob("*.png"))[:_MOST]:
        if file.stem.isdigit():
            data = read_bytes(file, _LARGEST)
            with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
                if max(picture.size) <= PIXELS:
                    found[int(file.stem)] = picture.convert("RGB")
    return found
