"""Fashion-MNIST, 5 tasks of 2 kinds of clothing.

60,000 training and 10,000 test images of 28x28 grey pixels (Xiao et al. 2017).
"""

from torchvision.datasets import FashionMNIST

from cl_clipfit import DataRequest, Options, Source
from cl_clipfit.data.fetch.archives import Archive, obtain
from cl_clipfit.data.formats.torchvision_sets import grey_images

NAME = "split-fashion-mnist"
CLASSES = 10
TASKS = 5
IMAGES = "60,000 + 10,000"
DOWNLOAD = "31 MB"
LICENCE = "MIT"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "natural"
FOLDER = "FashionMNIST/raw"
ARCHIVES = tuple(
    Archive(f"{FashionMNIST.mirrors[0]}{file}", f"md5:{md5}", into=FOLDER)
    for file, md5 in FashionMNIST.resources
)
EXPECTED = tuple(f"{FOLDER}/{file.removesuffix('.gz')}" for file, _ in FashionMNIST.resources)


def load(options: Options, request: DataRequest) -> Source:
    """Read the four files, as torchvision lays them out; class names are torchvision's."""
    located = obtain(NAME, ARCHIVES, EXPECTED, request)
    return Source(
        class_names=tuple(FashionMNIST.classes),
        templates=("a photo of a {}.",),
        train=grey_images(FashionMNIST, located.folder, train=True),
        test=grey_images(FashionMNIST, located.folder, train=False),
        origin=located.origin,
    )
