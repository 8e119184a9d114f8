"""Features computed elsewhere, in one file; for strategies that need no tower. No model is loaded.

`--data-dir FILE.npz` (or `.safetensors`) with `train_x, train_y, test_x, test_y, text` and
`classnames`, and `logit_scale` if it is not 100.
"""

from cl_clipfit import DataRequest, Options, Source, UserError
from cl_clipfit.data.formats.feature_files import read_features

NAME = "features"
CLASSES = "yours"
TASKS = 10
IMAGES = "yours"
DOWNLOAD = "by hand"
LICENCE = "yours"
MODEL = "features"
CLASS_ORDER = "natural"
RECIPE = {"batch_size": 128}


def load(options: Options, request: DataRequest) -> Source:
    """Read the file that `--data-dir` names."""
    file = request.data_dir
    if file is None or not file.is_file():
        folder = f"{file} is a folder: " if file and file.is_dir() else ""
        raise UserError(
            f"{NAME}: {folder}--data-dir must name a .npz or .safetensors file with train_x,"
            " train_y, test_x, test_y, text and classnames"
        )
    return read_features(file)
