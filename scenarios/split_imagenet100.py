"""100 classes of ImageNet-1k, 10 tasks of 10; needs your own copy.

By default the first 100 classes of `numpy.random.RandomState(1993).permutation(1000)`, in this
order, the subset of LUCIR, PODNet and DER; a file of WordNet ids or class names selects others.
Accepted: an unpacked tree, train/WNID/* and val/WNID/*, with at least these classes.
"""

import numpy as np
from pydantic import Field

from cl_clipfit import DataRequest, Names, Options, Source
from cl_clipfit.data.formats.imagenet import (
    TEMPLATES,
    class_names,
    find_classes,
    imagenet_tree,
    read_tree,
)

NAME = "split-imagenet100"
CLASSES = 100
TASKS = 10
IMAGES = "about 130,000 + 5,000"
DOWNLOAD = "by hand"
LICENCE = "ImageNet's: research"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "natural"


class SubsetOptions(Options):
    """Settings of the subset."""

    classes: Names = Field(
        (), description="WordNet ids or class names in label order, or a file with one per line"
    )


def load(options: SubsetOptions, request: DataRequest) -> Source:
    """List the images of the classes in an unpacked tree; labels follow the list."""
    wnids = find_classes(options.classes) or [
        list(class_names())[label]
        for label in np.random.RandomState(1993).permutation(1000)[:CLASSES]
    ]
    located = imagenet_tree(request)
    help = f"or name the classes that are present: --set {NAME}.classes=FILE"
    wnids, train, test = read_tree(located.folder, wnids, help)
    names = tuple(class_names()[wnid] for wnid in wnids)
    return Source(names, TEMPLATES, train, test, {**located.origin, "classes": len(wnids)})
