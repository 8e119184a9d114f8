"""Oxford-IIIT Pet, 37 breeds of cats and dogs; a data set of the MTIL stream.

Parkhi et al. 2012. Trained on its "trainval" images.
"""

from torchvision.datasets import OxfordIIITPet

from cl_clipfit import DataRequest, Options, Source
from cl_clipfit.data.fetch.archives import Archive, obtain
from cl_clipfit.data.formats.torchvision_sets import official_split

NAME = "oxford-pets"
CLASSES = 37
TASKS = 10
IMAGES = "3,680 + 3,669"
DOWNLOAD = "811 MB"
LICENCE = "CC BY-SA 4.0"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "natural"
FOLDER = "oxford-iiit-pet"
ARCHIVES = tuple(Archive(url, f"md5:{md5}", into=FOLDER) for url, md5 in OxfordIIITPet._RESOURCES)
EXPECTED = tuple(
    f"{FOLDER}/{name}" for name in ("annotations/trainval.txt", "annotations/test.txt", "images")
)


def load(options: Options, request: DataRequest) -> Source:
    """List the images of the splits "trainval" and "test"."""
    located = obtain(NAME, ARCHIVES, EXPECTED, request)
    names, train, test = official_split(OxfordIIITPet, located.folder, CLASSES, train="trainval")
    return Source(
        class_names=names,
        templates=("a photo of a {}, a type of pet.",),
        train=train,
        test=test,
        origin=located.origin,
    )
