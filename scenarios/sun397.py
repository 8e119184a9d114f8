"""SUN397, 397 kinds of scenes; a data set of the MTIL stream.

Xiao et al. 2010. Of all 108,754 images 80% are drawn for training with seed 42, as in ZSCL (Zheng
et al. 2023, arXiv 2303.06628), not by the ten published partitions of 50 + 50 images per class. The
images are sorted by path before the draw, since torchvision lists them in file system order.
"""

from pydantic import Field
from torchvision.datasets import SUN397

from cl_clipfit import DataRequest, Options, Source
from cl_clipfit.data.fetch.archives import Archive, obtain
from cl_clipfit.data.formats.folders import plain_name
from cl_clipfit.data.formats.torchvision_sets import drawn_split

NAME = "sun397"
CLASSES = 397
TASKS = 10
IMAGES = "87,003 + 21,751"
DOWNLOAD = "39 GB"
LICENCE = "none stated"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "natural"
ARCHIVES = (Archive(SUN397._DATASET_URL, f"md5:{SUN397._DATASET_MD5}"),)
EXPECTED = ("SUN397/ClassName.txt", "SUN397/a")


class Sun397Options(Options):
    """Settings of the split."""

    split_seed: int = Field(42, ge=0, description="seed of the draw of the training images")


def load(options: Sun397Options, request: DataRequest) -> Source:
    """List the images and draw the split."""
    located = obtain(NAME, ARCHIVES, EXPECTED, request)
    names, train, test = drawn_split(SUN397, located.folder, CLASSES, options.split_seed)
    return Source(
        class_names=tuple(plain_name(name.replace("/", " ")) for name in names),
        templates=("a photo of a {}.",),
        train=train,
        test=test,
        origin={**located.origin, "split": "random 80/20", "split_seed": options.split_seed},
    )
