"""CUB-200-2011, 10 tasks of 20 species of birds.

5,994 training and 5,794 test images in the official split (Wah et al. 2011).
"""

from cl_clipfit import DataRequest, Options, Source, UserError
from cl_clipfit.data.fetch.archives import Archive, obtain
from cl_clipfit.data.formats.folders import plain_name
from cl_clipfit.data.formats.imagenet import listed, read_table

NAME = "split-cub200"
CLASSES = 200
TASKS = 10
IMAGES = "5,994 + 5,794"
DOWNLOAD = "1.2 GB"
LICENCE = "non-commercial"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "pycil-1993"
FOLDER = "CUB_200_2011"
TABLES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
ARCHIVES = (
    Archive(
        "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
        "md5:97eceeb196236b17998738112f37df78",
    ),
)


def load(options: Options, request: DataRequest) -> Source:
    """Read the folder that the archive unpacks to, downloading it if it is missing."""
    expected = [f"{FOLDER}/{name}" for name in (*TABLES, "images")]
    located = obtain(NAME, ARCHIVES, expected, request)
    root = located.folder / FOLDER
    files, labels, is_train, classes = (
        {row[0]: row[1] for row in read_table(root / name, 2)} for name in TABLES
    )
    for name, table in (("image_class_labels.txt", labels), ("train_test_split.txt", is_train)):
        if table.keys() != files.keys():
            raise UserError(f"{root / name} and images.txt name different images")
    if list(classes) != [str(number) for number in range(1, len(classes) + 1)]:
        raise UserError(f"{root / 'classes.txt'} must number the classes 1, 2, 3 ...")
    for name, table, allowed in (
        ("image_class_labels.txt", labels, {*classes}),
        ("train_test_split.txt", is_train, {"0", "1"}),
    ):
        invalid = sorted({*table.values()} - allowed)
        if invalid:
            raise UserError(f"{root / name} contains '{invalid[0]}', which is not a valid value")
    train, test = (
        listed(
            [root / "images" / files[image] for image in files if is_train[image] == flag],
            [int(labels[image]) - 1 for image in files if is_train[image] == flag],
            str(root / "images.txt"),
        )
        for flag in ("1", "0")
    )
    names = tuple(plain_name(text.partition(".")[2] or text) for text in classes.values())
    return Source(names, ("a photo of a {}, a type of bird.",), train, test, located.origin)
