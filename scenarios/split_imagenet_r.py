"""ImageNet-R, 10 tasks of 20 classes: art, cartoons, toys and other renditions.

30,000 images of 200 classes of ImageNet (Hendrycks et al. 2021), without an official split into
training and test images: a fifth of each class, drawn with a fixed seed, is the test set. `--split`
accepts a published split. Labels count the classes by WordNet id.
"""

from pydantic import Field

from cl_clipfit import DataRequest, Options, Source, UserError
from cl_clipfit.data.fetch.archives import Archive, obtain
from cl_clipfit.data.formats.imagenet import TEMPLATES, class_names, held_classes, read_folders
from cl_clipfit.data.formats.splits import split_by_class

NAME = "split-imagenet-r"
CLASSES = 200
TASKS = 10
IMAGES = "about 24,000 + 6,000"
DOWNLOAD = "2.2 GB"
LICENCE = "MIT (the collection)"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "pycil-1993"
FOLDER = "imagenet-r"
ARCHIVES = (Archive("https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar", ""),)


class RenditionOptions(Options):
    """Settings of the split."""

    split_seed: int = Field(0, ge=0, lt=2**32, description="seed of the draw of test images")
    test_share: float = Field(
        0.2, gt=0, lt=1, description="share of each class used as test images"
    )
    partial: bool = Field(False, description="use the classes that are present if some are missing")


def load(options: RenditionOptions, request: DataRequest) -> Source:
    """List the folder that the archive unpacks to and draw the test images."""
    located = obtain(NAME, ARCHIVES, [FOLDER], request)
    root = located.folder / FOLDER
    wnids = held_classes(root, CLASSES, NAME, request)
    if len(wnids) < CLASSES and not options.partial:
        raise UserError(
            f"{root} has only {len(wnids)} of {CLASSES} classes: unpack the archive again, or use"
            f" only these: --set {NAME}.partial=true"
        )
    names = tuple(class_names()[wnid] for wnid in wnids)
    data = read_folders(root, wnids)
    train, test = split_by_class(data, options.test_share, options.split_seed, names)
    rule = {"split": "by class", "split_seed": options.split_seed, "split_test": options.test_share}
    origin = {**located.origin, "classes": len(wnids), **rule}
    return Source(names, TEMPLATES, train, test, origin)
