"""The data sets that torchvision reads, in small: the official files with a few tiny images."""

import gzip
import io
import json
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from cl_clipfit.data.fetch.archives import Archive

_CALTECH = """
    BACKGROUND_Google Faces Faces_easy Leopards Motorbikes accordion airplanes anchor ant barrel
    bass beaver binocular bonsai brain brontosaurus buddha butterfly camera cannon car_side
    ceiling_fan cellphone chair chandelier cougar_body cougar_face crab crayfish crocodile
    crocodile_head cup dalmatian dollar_bill dolphin dragonfly electric_guitar elephant emu
    euphonium ewer ferry flamingo flamingo_head garfield gerenuk gramophone grand_piano hawksbill
    headphone hedgehog helicopter ibis inline_skate joshua_tree kangaroo ketch lamp laptop llama
    lobster lotus mandolin mayfly menorah metronome minaret nautilus octopus okapi pagoda panda
    pigeon pizza platypus pyramid revolver rhino rooster saxophone schooner scissors scorpion
    sea_horse snoopy soccer_ball stapler starfish stegosaurus stop_sign strawberry sunflower tick
    trilobite umbrella watch water_lilly wheelchair wild_cat windsor_chair wrench yin_yang
"""
_EUROSAT = """
    AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential
    River SeaLake
"""
CALTECH_FOLDERS, EUROSAT_FOLDERS = _CALTECH.split(), _EUROSAT.split()


class Pictures:
    """Writes JPEG files of several sizes, each of another colour."""

    def __init__(self) -> None:
        self.count = 0

    def write(self, file: Path) -> None:
        self.count += 1
        n, size = self.count, (8 + self.count % 5, 8 + self.count % 3)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (n % 16 * 16, n // 16 % 16 * 16, n // 256 * 16)).save(file, "JPEG")


def write_lines(file: Path, lines: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    draws = np.random.default_rng(0)
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        labels = draws.permutation(10).tolist()
        data = draws.integers(0, 256, (10, 3072), dtype=np.uint8)
        batch = {"batch_label": name, "labels": labels, "data": data, "filenames": ["a.png"] * 10}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    meta = {"num_cases_per_batch": 10, "label_names": names.split(), "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))


def grey(folder: str) -> Callable[[Path], None]:
    """Return a builder of MNIST's four files."""

    def build(root: Path) -> None:
        (root / folder).mkdir(parents=True)
        draws = np.random.default_rng(1)
        for part, count in (("train", 30), ("t10k", 20)):
            images = draws.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            labels = draws.permutation(np.arange(count, dtype=np.uint8) % 10)
            for name, data in (("images-idx3", images), ("labels-idx1", labels)):
                # two zero bytes, 8 for unsigned bytes, the number of axes, their lengths
                head = struct.pack(f">BBBB{data.ndim}I", 0, 0, 8, data.ndim, *data.shape)
                (root / folder / f"{part}-{name}-ubyte").write_bytes(head + data.tobytes())

    return build


def aircraft(root: Path) -> None:
    folder, pictures = root / "fgvc-aircraft-2013b" / "data", Pictures()
    variants = [f"A{n}-{n}/B" if n % 2 else f"Cessna {n}" for n in range(100)]
    write_lines(folder / "variants.txt", variants)
    for part in ("train", "val", "test"):
        lines = []
        for variant in reversed(variants):
            number = f"{pictures.count:07d}"
            pictures.write(folder / "images" / f"{number}.jpg")
            lines.append(f"{number} {variant}")
        write_lines(folder / f"images_variant_{part}.txt", lines)


def caltech(root: Path) -> None:
    folder, pictures = root / "caltech101" / "101_ObjectCategories", Pictures()
    for number, name in enumerate(CALTECH_FOLDERS):
        for image in range(1, 2 + number % 3):
            pictures.write(folder / name / f"image_{image:04d}.jpg")


def dtd(root: Path) -> None:
    folder, pictures = root / "dtd" / "dtd", Pictures()
    for part in ("train1", "val1", "test1", "train2"):
        paths = [f"texture-{n}/texture-{n}_{pictures.count:04d}.jpg" for n in range(46, -1, -1)]
        write_lines(folder / "labels" / f"{part}.txt", paths)
        for path in paths:
            pictures.write(folder / "images" / path)


def eurosat(root: Path) -> None:
    pictures = Pictures()
    for name in EUROSAT_FOLDERS:
        for image in (1, 2, 10):
            pictures.write(root / "eurosat" / "2750" / name / f"{name}_{image}.jpg")


def flowers(root: Path) -> None:
    folder, pictures = root / "flowers-102", Pictures()
    labels = np.random.default_rng(2).permutation(np.arange(306) % 102) + 1
    for number in range(1, 307):
        pictures.write(folder / "jpg" / f"image_{number:05d}.jpg")
    # one image of each class in each part
    by_class = np.argsort(labels, kind="stable").reshape(102, 3).astype(np.uint16) + 1
    parts = {name: by_class[:, [n]].T for n, name in enumerate(("trnid", "valid", "tstid"))}
    savemat(folder / "imagelabels.mat", {"labels": labels.astype(np.uint8)[None]})
    savemat(folder / "setid.mat", parts)


def food(root: Path) -> None:
    folder, pictures = root / "food-101", Pictures()
    names = [f"dish_no_{n}" for n in range(101)]
    for part in ("train", "test"):
        listed = {name: [f"{name}/{part}{n}" for n in range(2)] for name in names}
        for paths in listed.values():
            for path in paths:
                pictures.write(folder / "images" / f"{path}.jpg")
        write_lines(folder / "meta" / f"{part}.json", [json.dumps(listed)])


def pets(root: Path) -> None:
    folder, pictures = root / "oxford-iiit-pet", Pictures()
    for part in ("trainval", "test"):
        lines = []
        for breed in range(37):
            number = f"long_haired_{breed}_{pictures.count}"
            pictures.write(folder / "images" / f"{number}.jpg")
            lines.append(f"{number} {breed + 1} {1 + breed % 2} 1")
        write_lines(folder / "annotations" / f"{part}.txt", lines)


def cars(root: Path) -> None:
    folder, pictures = root / "stanford_cars", Pictures()
    fields = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class")]
    (folder / "devkit").mkdir(parents=True)
    names = np.array([[f"Maker Model {n} {1990 + n % 20}" for n in range(196)]], dtype=object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    files = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    for part, file in files.items():
        rows = []
        for number in range(1, 197):
            pictures.write(folder / f"cars_{part}" / f"{number:05d}.jpg")
            label = np.uint8(number * 5 % 196 + 1)  # 5 and 196 share no divisor: all labels occur
            rows.append((1, 1, 8, 8, label, f"{number:05d}.jpg"))
        notes = np.array([rows], dtype=object)
        table = np.empty((1, 196), dtype=[*fields, ("fname", object)])
        for column, (name, _) in enumerate([*fields, ("fname", object)]):
            table[name] = notes[:, :, column]
        savemat(folder / file, {"annotations": table})


def sun(root: Path) -> None:
    folder, pictures = root / "SUN397", Pictures()
    names = [f"{'abz'[n % 3]}/scene_{n:03d}" + "/outdoor" * (n % 2) for n in range(397)]
    for number in range(3 * 397):
        pictures.write(folder / sorted(names)[-1 - number % 397] / f"sun_{number:04x}.jpg")
    write_lines(folder / "ClassName.txt", [f"/{name}" for name in sorted(names)])


BUILDERS: dict[str, Callable[[Path], None]] = {
    "split-cifar10": cifar10,
    "split-fashion-mnist": grey("FashionMNIST/raw"),
    "mnist": grey("MNIST/raw"),
    "fgvc-aircraft": aircraft,
    "caltech101": caltech,
    "dtd": dtd,
    "eurosat": eurosat,
    "flowers102": flowers,
    "food101": food,
    "oxford-pets": pets,
    "split-cars196": cars,
    "sun397": sun,
}
HOLDS = {  # what an archive holds, where its name does not say so
    "cifar-10-python.tar.gz": "cifar-10-batches-py",
    "dtd-r1.0.1.tar.gz": "dtd",
    "EuroSAT.zip": "2750",
    "102flowers.tgz": "jpg",
    "car_devkit.tgz": "devkit",
}


def pack(root: Path, archive: Archive, folder: Path) -> Path:
    """Write an archive of what is unpacked in `root`, as the official one is made."""
    target, base = folder / archive.name, root / archive.into
    plain = archive.name.removesuffix(".gz")
    if archive.name == "caltech-101.zip":
        with tarfile.open(folder / "inner", "w:gz") as inner:
            inner.add(root / "caltech101" / "101_ObjectCategories", "101_ObjectCategories")
        with zipfile.ZipFile(target, "w") as outer:
            outer.write(folder / "inner", "caltech-101/101_ObjectCategories.tar.gz")
            outer.writestr("caltech-101/Annotations.tar", b"")
            outer.writestr("__MACOSX/caltech-101/._Annotations.tar", b"")
    elif archive.name.endswith(".mat"):
        shutil.copy(base / archive.name, target)
    elif (base / plain).is_file():
        target.write_bytes(gzip.compress((base / plain).read_bytes()))
    elif archive.name.endswith(".zip"):
        with zipfile.ZipFile(target, "w") as zipped:
            for file in sorted((base / HOLDS[archive.name]).rglob("*")):
                zipped.write(file, file.relative_to(base))
    else:
        held = HOLDS.get(archive.name) or plain.removesuffix(".tar").removesuffix(".tgz")
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
            tar.add(base / held, held)
        target.write_bytes(packed.getvalue())
    return target
