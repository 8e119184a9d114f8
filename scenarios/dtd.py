"""Describable Textures (DTD), 47 textures; a data set of the MTIL stream.

Cimpoi et al. 2014. The first of its ten partitions: trained on "train", tested on "test"; its 1,880
"val" images are unused, as in ZSCL (Zheng et al. 2023, arXiv 2303.06628).
"""

from torchvision.datasets import DTD

from cl_clipfit import DataRequest, Options, Source
from cl_clipfit.data.fetch.archives import Archive, obtain
from cl_clipfit.data.formats.folders import plain_name
from cl_clipfit.data.formats.torchvision_sets import list_images, official_split

NAME = "dtd"
CLASSES = 47
TASKS = 10
IMAGES = "1,880 + 1,880"
DOWNLOAD = "625 MB"
LICENCE = "research only"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "natural"
ARCHIVES = (Archive(DTD._URL, f"md5:{DTD._MD5}", into="dtd"),)
EXPECTED = ("dtd/dtd/labels/train1.txt", "dtd/dtd/labels/test1.txt", "dtd/dtd/images")


def load(options: Options, request: DataRequest) -> Source:
    """List the images of the splits "train" and "test" of the first partition."""
    located = obtain(NAME, ARCHIVES, EXPECTED, request)
    names, train, test = official_split(DTD, located.folder, CLASSES)
    return Source(
        class_names=tuple(plain_name(name) for name in names),
        templates=("a photo of a {} texture.",),
        train=train,
        test=test,
        origin=located.origin,
        spare=lambda: list_images(DTD, located.folder, CLASSES, split="val")[1],
    )
