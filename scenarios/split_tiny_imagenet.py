"""Tiny ImageNet, 10 tasks of 20 classes of 64x64 pixels.

100,000 training images; the 10,000 validation images are the test set, since the official test
images have no labels. Labels count the classes by WordNet id. Names are CLIP's if the class is in
ImageNet-1k, else the first name in `words.txt`.
"""

from cl_clipfit import DataRequest, Options, Source, UserError
from cl_clipfit.data.fetch.archives import Archive, obtain
from cl_clipfit.data.formats.imagenet import (
    TEMPLATES,
    class_names,
    listed,
    read_folders,
    read_table,
)

NAME = "split-tiny-imagenet"
CLASSES = 200
TASKS = 10
IMAGES = "100,000 + 10,000"
DOWNLOAD = "248 MB"
LICENCE = "ImageNet's: research"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "pycil-1993"
FOLDER = "tiny-imagenet-200"
ARCHIVES = (
    Archive(
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "md5:90528d7ca1a48142e341f4ef8d21d0de"
    ),
)
EXPECTED = [
    f"{FOLDER}/{part}" for part in ("train", "val/images", "val/val_annotations.txt", "words.txt")
]


def load(options: Options, request: DataRequest) -> Source:
    """Read the folder that the archive unpacks to, downloading it if it is missing."""
    located = obtain(NAME, ARCHIVES, [*EXPECTED, f"{FOLDER}/wnids.txt"], request)
    root = located.folder / FOLDER
    wnids = sorted(wnid for (wnid,) in read_table(root / "wnids.txt", 1))
    words = {row[0]: row[1] for row in read_table(root / "words.txt", 2, "\t")}
    table = root / "val" / "val_annotations.txt"
    rows, label_of = read_table(table, 3, "\t"), {wnid: label for label, wnid in enumerate(wnids)}
    unknown = [wnid for _, wnid, _ in rows if wnid not in label_of]
    unnamed = [wnid for wnid in wnids if wnid not in words]
    if unknown or unnamed:
        where, what = (table, unknown) if unknown else (root / "words.txt", unnamed)
        raise UserError(f"{where} and wnids.txt disagree about {what[0]}")
    return Source(
        class_names=tuple(
            class_names().get(wnid) or words[wnid].split(",")[0].strip() for wnid in wnids
        ),
        templates=TEMPLATES,
        train=read_folders(root / "train", wnids, "images"),
        test=listed(
            [root / "val" / "images" / file for file, _, _ in rows],
            [label_of[wnid] for _, wnid, _ in rows],
            str(table),
        ),
        origin=located.origin,
    )
