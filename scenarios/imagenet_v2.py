"""ImageNetV2 (matched frequency) as a probe: new test photos of the 1,000 classes, test only.

10,000 images, collected as ImageNet's own were (Recht et al. 2019). Folders 0 to 999 are labels.
"""

from cl_clipfit import DataRequest, Options, Source, UserError
from cl_clipfit.data.fetch.archives import Archive, obtain
from cl_clipfit.data.formats.imagenet import class_names, probe, read_folders, subfolders

NAME = "imagenet-v2"
CLASSES = 1000
TASKS = 1
IMAGES = "0 + 10,000"
DOWNLOAD = "1.3 GB"
LICENCE = "MIT (the collection)"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "natural"
FOLDER = "imagenetv2-matched-frequency-format-val"
ARCHIVES = (
    Archive(
        "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main"
        "/imagenetv2-matched-frequency.tar.gz",
        "",
    ),
)


def load(options: Options, request: DataRequest) -> Source:
    """List the folder that the archive unpacks to, downloading it if it is missing."""
    located = obtain(NAME, ARCHIVES, [FOLDER], request)
    root, names = located.folder / FOLDER, list(class_names().values())
    folders = subfolders(root)
    held = [str(label) for label in range(CLASSES) if str(label) in folders]
    invalid = sorted(set(folders) - set(held))
    if invalid:
        raise UserError(f"{root / invalid[0]} is not a label from 0 to {CLASSES - 1}")
    if not held:
        raise UserError(f"{root} holds no folders 0, 1, 2 ...")
    if len(held) < CLASSES:
        request.note(f"{NAME}: {root} has only {len(held)} of {CLASSES} classes")
    return probe([names[int(label)] for label in held], read_folders(root, held), located.origin)
