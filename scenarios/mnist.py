"""MNIST, handwritten digits; a data set of the MTIL stream.

60,000 training and 10,000 test images of 28x28 grey pixels (LeCun et al. 1998). Class names, as
"0 - zero", and template as in ZSCL (Zheng et al. 2023, arXiv 2303.06628).
"""

from torchvision.datasets import MNIST

from cl_clipfit import DataRequest, Options, Source
from cl_clipfit.data.fetch.archives import Archive, obtain
from cl_clipfit.data.formats.torchvision_sets import grey_images

NAME = "mnist"
CLASSES = 10
TASKS = 5
IMAGES = "60,000 + 10,000"
DOWNLOAD = "12 MB"
LICENCE = "none stated"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "natural"
FOLDER = "MNIST/raw"
HOST = "https://ossci-datasets.s3.amazonaws.com/mnist/"  # torchvision's mirror; the host is gone
ARCHIVES = tuple(
    Archive(f"{HOST}{file}", f"md5:{md5}", into=FOLDER) for file, md5 in MNIST.resources
)
EXPECTED = tuple(f"{FOLDER}/{file.removesuffix('.gz')}" for file, _ in MNIST.resources)


def load(options: Options, request: DataRequest) -> Source:
    """Read the four files, as torchvision lays them out."""
    located = obtain(NAME, ARCHIVES, EXPECTED, request)
    return Source(
        class_names=tuple(MNIST.classes),
        templates=('a photo of the number: "{}".',),
        train=grey_images(MNIST, located.folder, train=True),
        test=grey_images(MNIST, located.folder, train=False),
        origin=located.origin,
    )
