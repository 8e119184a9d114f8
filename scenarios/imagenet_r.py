"""ImageNet-R as a probe: all renditions of 200 classes of ImageNet, test only.

30,000 images of art, cartoons, toys and the like (Hendrycks et al. 2021), ranked among these 200
classes only.
"""

from cl_clipfit import DataRequest, Options, Source
from cl_clipfit.data.fetch.archives import Archive, obtain
from cl_clipfit.data.formats.imagenet import wordnet_probe

NAME = "imagenet-r"
CLASSES = 200
TASKS = 1
IMAGES = "0 + 30,000"
DOWNLOAD = "2.2 GB"
LICENCE = "MIT (the collection)"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "natural"
FOLDER = "imagenet-r"
ARCHIVES = (Archive("https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar", ""),)


def load(options: Options, request: DataRequest) -> Source:
    """List the folder that the archive unpacks to, downloading it if it is missing."""
    located = obtain(NAME, ARCHIVES, [FOLDER], request)
    return wordnet_probe(located, FOLDER, CLASSES, NAME, request)
