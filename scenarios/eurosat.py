"""EuroSAT, 10 kinds of land use seen by satellite; a data set of the MTIL stream.

Helber et al. 2019, the RGB images of 64x64 pixels. There is no official split: 80% of all images
are drawn for training with seed 42, as in ZSCL (Zheng et al. 2023, arXiv 2303.06628).
"""

from pydantic import Field
from torchvision.datasets import EuroSAT

from cl_clipfit import DataRequest, Options, Source
from cl_clipfit.data.fetch.archives import Archive, obtain
from cl_clipfit.data.formats.torchvision_sets import drawn_split

NAME = "eurosat"
CLASSES = 10
TASKS = 5
IMAGES = "21,600 + 5,400"
DOWNLOAD = "94 MB"
LICENCE = "MIT"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "natural"
ARCHIVES = (
    Archive(
        "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
        "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
        "md5:c8fa014336c82ac7804f0398fcb19387",
        into="eurosat",
    ),
)
NAMES = {  # of the folders
    "AnnualCrop": "annual crop land",
    "Forest": "forest",
    "HerbaceousVegetation": "brushland or shrubland",
    "Highway": "highway or road",
    "Industrial": "industrial buildings or commercial buildings",
    "Pasture": "pasture land",
    "PermanentCrop": "permanent crop land",
    "Residential": "residential buildings or homes or apartments",
    "River": "river",
    "SeaLake": "lake or sea",
}
EXPECTED = tuple(f"eurosat/2750/{folder}" for folder in NAMES)


class EurosatOptions(Options):
    """Settings of the split."""

    split_seed: int = Field(42, ge=0, description="seed of the draw of the training images")


def load(options: EurosatOptions, request: DataRequest) -> Source:
    """List the images and draw the split."""
    located = obtain(NAME, ARCHIVES, EXPECTED, request)
    _, train, test = drawn_split(EuroSAT, located.folder, CLASSES, options.split_seed)
    return Source(
        class_names=tuple(NAMES.values()),
        templates=("a centered satellite photo of {}.",),
        train=train,
        test=test,
        origin={**located.origin, "split": "random 80/20", "split_seed": options.split_seed},
    )
