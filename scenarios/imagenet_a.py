"""ImageNet-A as a probe: natural photos that mislead a ResNet-50, test only.

7,500 images of 200 classes of ImageNet (Hendrycks et al. 2021, "Natural Adversarial Examples"),
ranked among these 200 classes only.
"""

from cl_clipfit import DataRequest, Options, Source
from cl_clipfit.data.fetch.archives import Archive, obtain
from cl_clipfit.data.formats.imagenet import wordnet_probe

NAME = "imagenet-a"
CLASSES = 200
TASKS = 1
IMAGES = "0 + 7,500"
DOWNLOAD = "688 MB"
LICENCE = "MIT (the collection)"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "natural"
FOLDER = "imagenet-a"
ARCHIVES = (Archive("https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar", ""),)


def load(options: Options, request: DataRequest) -> Source:
    """List the folder that the archive unpacks to, downloading it if it is missing."""
    located = obtain(NAME, ARCHIVES, [FOLDER], request)
    return wordnet_probe(located, FOLDER, CLASSES, NAME, request)
