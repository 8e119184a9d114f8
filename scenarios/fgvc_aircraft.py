"""FGVC-Aircraft, 100 aircraft variants; a data set of the MTIL stream.

Maji et al. 2013, arXiv 1306.5151. Trained on its "train" images; its 3,333 "val" images are unused,
as in ZSCL (Zheng et al. 2023, arXiv 2303.06628). torchvision has no checksum for the archive, so
results say that it is not verified.
"""

from torchvision.datasets import FGVCAircraft

from cl_clipfit import DataRequest, Options, Source
from cl_clipfit.data.fetch.archives import Archive, obtain
from cl_clipfit.data.formats.torchvision_sets import list_images, official_split

NAME = "fgvc-aircraft"
CLASSES = 100
TASKS = 10
IMAGES = "3,334 + 3,333"
DOWNLOAD = "2.8 GB"
LICENCE = "non-commercial"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "natural"
ARCHIVES = (Archive(FGVCAircraft._URL, ""),)
FOLDER = "fgvc-aircraft-2013b/data"
EXPECTED = tuple(
    f"{FOLDER}/{name}"
    for name in ("variants.txt", "images_variant_train.txt", "images_variant_test.txt", "images")
)


def load(options: Options, request: DataRequest) -> Source:
    """List the images of the splits "train" and "test"."""
    located = obtain(NAME, ARCHIVES, EXPECTED, request)
    names, train, test = official_split(FGVCAircraft, located.folder, CLASSES)
    return Source(
        class_names=names,
        templates=("a photo of a {}, a type of aircraft.",),
        train=train,
        test=test,
        origin=located.origin,
        spare=lambda: list_images(FGVCAircraft, located.folder, CLASSES, split="val")[1],
    )
