"""ObjectNet as a probe: household objects, turned and out of place, test only.

18,574 of 50,000 photos, those of the 113 classes that overlap ImageNet-1k (Barbu et al. 2019), with
ObjectNet's class names. The official images have a red border of 2 pixels, which published results
cut off before resizing; here it is NOT cut off, so numbers may differ a little from those.
"""

from cl_clipfit import DataRequest, Options, Source, UserError
from cl_clipfit.data.formats.imagenet import probe, read_folders, subfolders, unpacked_by_hand
from cl_clipfit.data.formats.splits import read_json

NAME = "objectnet"
CLASSES = 113
TASKS = 1
IMAGES = "0 + 18,574"
DOWNLOAD = "by hand"
LICENCE = "CC BY 4.0, test only"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "natural"
FOLDER = "objectnet-1.0"
HELP = f"https://objectnet.dev has {FOLDER}.zip, locked with a password: unpack it by hand"
FOLDERS = "mappings/folder_to_objectnet_label.json"
OVERLAP = "mappings/objectnet_to_imagenet_1k.json"


def load(options: Options, request: DataRequest) -> Source:
    """List the folders of the classes that are also in ImageNet-1k."""
    located = unpacked_by_hand(NAME, ["images", FOLDERS, OVERLAP], FOLDER, request, HELP)
    label_of, overlap = (read_json(located.folder / file)[0] for file in (FOLDERS, OVERLAP))
    for file, content in ((FOLDERS, label_of), (OVERLAP, overlap)):
        texts = [*content, *content.values()] if isinstance(content, dict) else [None]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{located.folder / file} must map names to names")
    missing = sorted(set(overlap) - set(label_of.values()))
    if missing:
        raise UserError(f"{located.folder / FOLDERS} names no folder for '{missing[0]}'")
    root = located.folder / "images"
    present = set(subfolders(root))
    shared = sorted(folder for folder, label in label_of.items() if label in overlap)
    held = [folder for folder in shared if folder in present]
    if not held:
        raise UserError(f"{root} holds none of the {len(shared)} folders that overlap ImageNet")
    if len(held) < CLASSES:
        request.note(f"{NAME}: {root} has only {len(held)} of {CLASSES} classes")
    return probe([label_of[folder] for folder in held], read_folders(root, held), located.origin)
