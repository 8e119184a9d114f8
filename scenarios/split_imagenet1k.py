"""ImageNet-1k, 10 tasks of 100 classes; needs a copy of your own.

1,281,167 training images; the 50,000 validation images are the test set (Russakovsky et al. 2015).
Accepted: an unpacked tree, train/WNID/* and val/WNID/*, as torchvision and most others keep it.
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
    """Settings of the reading."""

    partial: bool = Field(False, description="go on with the classes that are there")


def load(options: TreeOptions, request: DataRequest) -> Source:
    """List the images of an unpacked tree."""
    located = imagenet_tree(request)
    help = f"or go on with those that are there: --set {NAME}.partial=true"
    wnids, train, test = read_tree(located.folder, list(class_names()), help, options.partial)
    names = tuple(class_names()[wnid] for wnid in wnids)
    return Source(names, TEMPLATES, train, test, {**located.origin, "classes": len(wnids)})
