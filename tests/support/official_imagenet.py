"""ImageNet, its relatives and CUB in small, in the official formats, as {path: bytes}."""

import io
import json
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image
from timm.data import ImageNetInfo

WNIDS = ImageNetInfo().label_names()
ELSEWHERE = ("n00007846", "n02403004")  # persons and oxen: no classes of ImageNet-1k


def picture(colour: int = 0, form: str = "JPEG") -> bytes:
    """Return an image file."""
    data = io.BytesIO()
    Image.new("RGB", (20, 16), (colour % 256, colour // 256, 100)).save(data, form)
    return data.getvalue()


PICTURE = picture()


def unpacked(folder: Path, files: dict[str, bytes]) -> Path:
    """Write the files into a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def packed(name: str, files: dict[str, bytes]) -> bytes:
    """Return the archive of this name: .zip, .tar, .tar.gz or .tgz."""
    data = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(data, "w") as archive:
            for path, content in files.items():
                archive.writestr(path, content)
    else:
        with tarfile.open(fileobj=data, mode="w" if name.endswith(".tar") else "w:gz") as tar:
            for path, content in files.items():
                info = tarfile.TarInfo(path)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def folders(root: str, names: Iterable[str], each: int = 2, end: str = "jpg") -> dict[str, bytes]:
    """Return `root`/NAME/NAME_0.jpg and so on, the images of a folder in no order."""
    return {f"{root}/{n}/{n}_{i}.{end}": PICTURE for n in names for i in reversed(range(each))}


def imagenet(wnids: Sequence[str], train: int = 3, val: int = 1) -> dict[str, bytes]:
    """Return train/WNID/WNID_N.JPEG and val/WNID/ILSVRC2012_val_0000000N.JPEG."""
    files = folders("train", wnids, train, "JPEG")
    for number, wnid in enumerate([w for w in wnids for _ in range(val)], start=1):
        files[f"val/{wnid}/ILSVRC2012_val_{number:08}.JPEG"] = PICTURE
    return files


def tiny_imagenet() -> dict[str, bytes]:
    """Return six classes of Tiny ImageNet, two of them outside of ImageNet-1k."""
    wnids = [WNIDS[500], ELSEWHERE[1], WNIDS[0], WNIDS[134], ELSEWHERE[0], WNIDS[999]]
    root = "tiny-imagenet-200"
    files: dict[str, bytes] = {}
    rows = []
    for place, wnid in enumerate(wnids):
        for i in range(4):
            files[f"{root}/train/{wnid}/images/{wnid}_{i}.JPEG"] = PICTURE
        files[f"{root}/train/{wnid}/{wnid}_boxes.txt"] = b"n_0.JPEG\t0\t62\t0\t63\n"
        rows += [(3 * place + 1, wnid), (50 - place, wnid)]
    for number, _ in rows:
        files[f"{root}/val/images/val_{number}.JPEG"] = PICTURE
        files[f"{root}/test/images/test_{number}.JPEG"] = PICTURE
    table = "".join(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n" for number, wnid in sorted(rows))
    words = f"{ELSEWHERE[0]}\tperson, individual, someone\n{ELSEWHERE[1]}\tox\n"
    words += "".join(f"{wnid}\tword of {wnid}, other\n" for wnid in WNIDS)
    texts = {"val/val_annotations.txt": table, "words.txt": words}
    texts["wnids.txt"] = "".join(f"{wnid}\n" for wnid in wnids)
    return files | {f"{root}/{name}": text.encode() for name, text in texts.items()}


BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Parakeet_Auklet")


def cub200() -> dict[str, bytes]:
    """Return three species of CUB-200-2011: image 1 of each is a test image, 2 and 3 train."""
    rows = [
        (3 * label + i, f"{bird}/{bird[4:]}_{i:04}_{796100 + i}.jpg", label + 1, int(i != 1))
        for label, bird in enumerate(BIRDS)
        for i in (1, 2, 3)
    ]
    texts = {
        "images.txt": "".join(f"{number} {file}\n" for number, file, _, _ in rows),
        "image_class_labels.txt": "".join(f"{number} {label}\n" for number, _, label, _ in rows),
        "train_test_split.txt": "".join(f"{number} {train}\n" for number, _, _, train in rows),
        "classes.txt": "".join(f"{n} {bird}\n" for n, bird in enumerate(BIRDS, start=1)),
    }
    files = {f"CUB_200_2011/images/{file}": PICTURE for _, file, _, _ in rows}
    files["attributes.txt"] = b"1 has_bill_shape::curved_(up_or_down)\n"  # beside the folder
    return files | {f"CUB_200_2011/{name}": text.encode() for name, text in texts.items()}


def objectnet() -> dict[str, bytes]:
    """Return four folders of ObjectNet, two of them with classes of ImageNet."""
    labels = {
        "air_freshener": "Air freshener", "alarm_clock": "Alarm clock",
        "tv": "TV", "tape": "Tape / duct tape",
    }  # fmt: skip
    overlap = {"TV": "television, television system", "Alarm clock": "analog clock; digital clock"}
    maps = {"folder_to_objectnet_label": labels, "objectnet_to_imagenet_1k": overlap}
    files = folders("objectnet-1.0/images", labels, 2, "png")
    return files | {
        f"objectnet-1.0/mappings/{name}.json": json.dumps(content).encode()
        for name, content in maps.items()
    }
