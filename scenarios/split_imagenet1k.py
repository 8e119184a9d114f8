"""ImageNet-1k, 10 tasks of 100 classes; needs your own copy.

1,281,167 training images; the 50,000 validation images are the test set (Russakovsky et al. 2015).
Accepted: an unpacked tree, train/WNID/* and val/WNID/*, the layout of torchvision and most tools.
"""

from pydantic import Field

from cl_clipfit import DataRequest, Options, Source
from cl_clipfit.data.formats.imagenet import TEMPLATES, class_names, imagenet_tree, read_tree

NAME = "split-imagenet1k"
CLASSES = 1000
TASKS = 10
IMAGES = "1,281,167 + 50,000"
DOWNLOAD = "by hand"
LICENCE = "ImageNet's: research"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "pycil-1993"


class TreeOptions(Options):
    """How the tree is read."""

    partial: bool = Field(False, description="use the classes that are present if some are missing")


def load(options: TreeOptions, request: DataRequest) -> Source:
    """List the images of an unpacked tree."""
    located = imagenet_tree(request)
    help = f"or use only the classes that are present: --set {NAME}.partial=true"
    wnids, train, test = read_tree(located.folder, list(class_names()), help, options.partial)
    names = tuple(class_names()[wnid] for wnid in wnids)
    return Source(names, TEMPLATES, train, test, {**located.origin, "classes": len(wnids)})
