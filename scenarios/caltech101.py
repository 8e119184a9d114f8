"""Caltech-101, 101 kinds of objects; a data set of the MTIL stream.

Fei-Fei et al. 2004; the background class is left out, faces are two classes. There is no official
split: 80% of all images are drawn for training with seed 42, as in ZSCL (Zheng et al. 2023, arXiv
2303.06628).
"""

from pathlib import Path

from pydantic import Field
from torchvision.datasets import Caltech101

from cl_clipfit import DataRequest, Options, Source
from cl_clipfit.data.fetch.archives import Archive, Located, obtain
from cl_clipfit.data.formats.folders import plain_name
from cl_clipfit.data.formats.torchvision_sets import drawn_split

NAME = "caltech101"
CLASSES = 101
TASKS = 10
IMAGES = "6,941 + 1,736"
DOWNLOAD = "137 MB"
LICENCE = "CC BY 4.0"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "natural"
ARCHIVES = (
    Archive(
        "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
        "md5:3138e1922a9193bfa496528edbbc45d0",
    ),
)
EXPECTED = ("caltech-101/101_ObjectCategories.tar.gz",)  # an archive inside the archive
UNPACKED = "caltech101/101_ObjectCategories"
NAMES = {  # for folders whose names do not read well
    "Faces": "off-center face",
    "Faces_easy": "centered face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
    "airplanes": "airplane",
    "car_side": "side of a car",
    "cougar_body": "body of a cougar cat",
    "cougar_face": "face of a cougar cat",
    "crocodile_head": "head of a crocodile",
    "flamingo_head": "head of a flamingo",
    "snoopy": "snoopy (cartoon beagle)",
    "yin_yang": "yin and yang symbol",
}


class CaltechOptions(Options):
    """Settings of the split."""

    split_seed: int = Field(42, ge=0, description="seed of the draw of the training images")


def load(options: CaltechOptions, request: DataRequest) -> Source:
    """List the images and draw the split."""
    located, folder = _find(request)
    names, train, test = drawn_split(Caltech101, folder, CLASSES, options.split_seed)
    return Source(
        class_names=tuple(NAMES.get(name, plain_name(name)) for name in names),
        templates=("a photo of a {}.",),
        train=train,
        test=test,
        origin={**located.origin, "split": "random 80/20", "split_seed": options.split_seed},
    )


def _find(request: DataRequest) -> tuple[Located, Path]:
    """Return where the data set is, and torchvision's root in it; unpack the inner archive."""
    given = request.data_dir
    if given is not None and (given / UNPACKED).is_dir():
        return obtain(NAME, ARCHIVES, (UNPACKED,), request), given
    located = obtain(NAME, ARCHIVES, EXPECTED, request, f"A folder with {UNPACKED} works too")
    inner = located.folder / EXPECTED[0]
    archive = Archive("", "", name=inner.name, into="caltech101")
    silent = DataRequest(inner, progress=request.progress)
    return located, obtain(f"{NAME}-images", (archive,), (UNPACKED,), silent).folder
