"""`calibration.json`: how unsure a run is of an image that fits no class it has seen."""

import json
import math
from pathlib import Path

from cl_clipfit.errors import UserError, is_file
from cl_clipfit.storage.files import read_bytes, write_json
from cl_clipfit.storage.run_folder import CALIBRATION

SHARE = 0.05  # of the training images that would be left open


def write_threshold(run: Path, threshold: float, images: int) -> None:
    """Write the sureness, log p / (1 - p) of the chosen class, below which an image is left open.

    Args:
        run: folder of the run.
        threshold: `SHARE` of the training images that it was measured on are below it.
        images: how many these are.

    Raises:
        UserError: the folder cannot be written.
    """
    value = {"threshold": threshold, "training_images": images, "left_open": SHARE}
    write_json(run / CALIBRATION, value)


def read_threshold(run: Path) -> float:
    """Return the threshold of a run.

    Raises:
        UserError: the run keeps none, or the file is not what a run writes.
    """
    file = run / CALIBRATION
    if not is_file(file):
        raise UserError(
            f"{run}: it keeps no {CALIBRATION}, so it cannot say what is unknown: methods that"
            " learn nothing have none; repeat the run of an older version with --fresh"
        )
    try:
        threshold = json.loads(read_bytes(file))["threshold"]
        if type(threshold) is not float or not math.isfinite(threshold):
            raise ValueError(threshold)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is not what a run writes: repeat the run with --fresh") from error
    return threshold
