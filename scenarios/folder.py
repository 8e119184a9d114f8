"""Your own images in folders: train/CLASS/* and test/CLASS/*, or only CLASS/*.

Class names are the folders' names. Without test images (`test`, `val` or `valid`), a fifth of each
class is drawn as test images.
"""

from cl_clipfit import DataRequest, Source, UserError
from cl_clipfit.data.formats.folders import data_name
from cl_clipfit.data.formats.trees import SplitOptions, read_tree

NAME = "folder"
CLASSES = "yours"
TASKS = 5
IMAGES = "yours"
DOWNLOAD = "by hand"
LICENCE = "yours"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "natural"


def load(options: SplitOptions, request: DataRequest) -> Source:
    """List the images in the folder that `--data-dir` names."""
    folder = request.data_dir
    if folder is None or not folder.is_dir():
        file = f"{folder} is a file: " if folder and folder.is_file() else ""
        raise UserError(
            f"{NAME}: {file}--data-dir names a folder with train/CLASS/*.jpg and test/CLASS/*.jpg,"
            " or with CLASS/*.jpg, from which test images are drawn"
        )
    tree = read_tree(folder, options)
    drawn = options.model_dump() if tree.drawn else {}
    if tree.deep and len(tree.names) == 1:
        raise UserError(
            f"{folder} holds one class, '{tree.names[0]}': name the folder that holds"
            " the folders of all classes"
        )
    return Source(
        class_names=tree.names,
        templates=("a photo of a {}.",),
        train=tree.train,
        test=tree.test,
        origin={
            "kind": "folder",
            "name": data_name(folder),
            "verified": False,
            "drawn": tree.drawn,
            **drawn,
        },
        warnings=tree.warnings,
    )
