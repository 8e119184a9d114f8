"""Stanford Cars, 196 models in 10 tasks; also a data set of the MTIL stream.

Krause et al. 2013. The official host is gone: get the files by hand; no checksum is published.
"""

from torchvision.datasets import StanfordCars

from cl_clipfit import DataRequest, Options, Source
from cl_clipfit.data.fetch.archives import Archive, obtain
from cl_clipfit.data.formats.torchvision_sets import official_split

NAME = "split-cars196"
CLASSES = 196
TASKS = 10
IMAGES = "8,144 + 8,041"
DOWNLOAD = "by hand"
LICENCE = "none stated"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "natural"
FOLDER = "stanford_cars"
LABELS = "cars_test_annos_withlabels.mat"
ARCHIVES = tuple(
    Archive("", "", name=name, into=FOLDER)
    for name in ("cars_train.tgz", "cars_test.tgz", "car_devkit.tgz", LABELS)
)
EXPECTED = tuple(
    f"{FOLDER}/{name}"
    for name in (
        "cars_train",
        "cars_test",
        "devkit/cars_meta.mat",
        "devkit/cars_train_annos.mat",
        LABELS,
    )
)
HELP = (
    "The official host is gone. The files of any other copy work too: the images in"
    f" {FOLDER}/cars_train and {FOLDER}/cars_test, cars_meta.mat and cars_train_annos.mat in"
    f" {FOLDER}/devkit, {LABELS} in {FOLDER}; PATH is then the folder that holds {FOLDER}"
)


def load(options: Options, request: DataRequest) -> Source:
    """List the images of the splits "train" and "test"."""
    located = obtain(NAME, ARCHIVES, EXPECTED, request, HELP)
    names, train, test = official_split(StanfordCars, located.folder, CLASSES)
    return Source(
        class_names=names,
        templates=("a photo of a {}, a type of car.",),
        train=train,
        test=test,
        origin=located.origin,
    )
