"""Food-101, 101 dishes; a data set of the MTIL stream.

Bossard et al. 2014; the training images were left uncleaned on purpose.
"""

from torchvision.datasets import Food101

from cl_clipfit import DataRequest, Options, Source
from cl_clipfit.data.fetch.archives import Archive, obtain
from cl_clipfit.data.formats.folders import plain_name
from cl_clipfit.data.formats.torchvision_sets import official_split

NAME = "food101"
CLASSES = 101
TASKS = 10
IMAGES = "75,750 + 25,250"
DOWNLOAD = "5.0 GB"
LICENCE = "scientific fair use"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "natural"
ARCHIVES = (Archive(Food101._URL, f"md5:{Food101._MD5}"),)
EXPECTED = ("food-101/meta/train.json", "food-101/meta/test.json", "food-101/images")


def load(options: Options, request: DataRequest) -> Source:
    """List the images of the splits "train" and "test"."""
    located = obtain(NAME, ARCHIVES, EXPECTED, request)
    names, train, test = official_split(Food101, located.folder, CLASSES)
    return Source(
        class_names=tuple(plain_name(name) for name in names),
        templates=("a photo of a {}, a type of food.",),
        train=train,
        test=test,
        origin=located.origin,
    )
