"""ImageNet-Sketch as a probe: black and white sketches of the 1,000 classes, test only.

50,889 images (Wang et al. 2019, "Learning Robust Global Representations by Penalizing Local
Predictive Power").
"""

from cl_clipfit import DataRequest, Options, Source
from cl_clipfit.data.fetch.archives import Archive, obtain
from cl_clipfit.data.formats.imagenet import wordnet_probe

NAME = "imagenet-sketch"
CLASSES = 1000
TASKS = 1
IMAGES = "0 + 50,889"
DOWNLOAD = "7.8 GB"
LICENCE = "MIT (the collection)"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "natural"
FOLDER = "sketch"
ARCHIVES = (
    Archive(
        "https://huggingface.co/datasets/songweig/imagenet_sketch/resolve/main/data"
        "/ImageNet-Sketch.zip",
        "",
    ),
)


def load(options: Options, request: DataRequest) -> Source:
    """List the folder that the archive unpacks to, downloading it if it is missing."""
    located = obtain(NAME, ARCHIVES, [FOLDER], request)
    return wordnet_probe(located, FOLDER, CLASSES, NAME, request)
