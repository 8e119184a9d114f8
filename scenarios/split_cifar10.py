"""CIFAR-10, 5 tasks of 2 classes.

50,000 training and 10,000 test images of 32x32 pixels (Krizhevsky 2009).
"""

from cl_clipfit import DataRequest, Options, Source
from cl_clipfit.data.fetch.archives import Archive, obtain
from cl_clipfit.data.formats.cifar import CIFAR10, read_unpacked

NAME = "split-cifar10"
CLASSES = 10
TASKS = 5
IMAGES = "50,000 + 10,000"
DOWNLOAD = "170 MB"
LICENCE = "none stated"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "natural"
ARCHIVES = (Archive(CIFAR10.url, CIFAR10.checksum),)
EXPECTED = tuple(
    f"{CIFAR10.folder}/{name}" for name in (*CIFAR10.train, *CIFAR10.test, *CIFAR10.meta)
)


def load(options: Options, request: DataRequest) -> Source:
    """Read the unpacked folder; each of its files is compared with its published MD5 sum."""
    located = obtain(NAME, ARCHIVES, EXPECTED, request)
    data = read_unpacked(located.folder / CIFAR10.folder, CIFAR10, request.unverified)
    return Source(
        class_names=data.names,
        templates=("a photo of a {}.",),
        train=data.train,
        test=data.test,
        origin={**located.origin, "verified": data.verified},
    )
