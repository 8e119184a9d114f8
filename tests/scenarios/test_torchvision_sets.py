"""The data sets that torchvision reads: the same images, labels and splits as torchvision's own."""

import hashlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import random_split
from torchvision import datasets

from cl_clipfit import DataRequest, Source, UserError
from cl_clipfit.data.fetch.archives import Archive
from cl_clipfit.data.images.decode import open_image
from cl_clipfit.data.images.lazy import ImageFiles
from cl_clipfit.scenarios import caltech101, flowers102, mnist, split_cifar10
from tests.support.official import serve
from tests.support.official_sets import BUILDERS, pack

SPLIT, DRAWN = ({"split": "train"}, {"split": "test"}), None
REFERENCES: dict[str, tuple[Any, Any]] = {
    "split-cifar10": (datasets.CIFAR10, ({"train": True}, {"train": False})),
    "split-fashion-mnist": (datasets.FashionMNIST, ({"train": True}, {"train": False})),
    "mnist": (datasets.MNIST, ({"train": True}, {"train": False})),
    "fgvc-aircraft": (datasets.FGVCAircraft, SPLIT),
    "caltech101": (datasets.Caltech101, DRAWN),
    "dtd": (datasets.DTD, SPLIT),
    "eurosat": (datasets.EuroSAT, DRAWN),
    "flowers102": (datasets.Flowers102, SPLIT),
    "food101": (datasets.Food101, SPLIT),
    "oxford-pets": (datasets.OxfordIIITPet, ({"split": "trainval"}, {"split": "test"})),
    "split-cars196": (datasets.StanfordCars, SPLIT),
    "sun397": (datasets.SUN397, DRAWN),
}
RENAMED = {  # class names that are not torchvision's
    "caltech101": {
        0: "off-center face",
        1: "centered face",
        4: "accordion",
        100: "yin and yang symbol",
    },
    "eurosat": {0: "annual crop land", 2: "brushland or shrubland", 9: "lake or sea"},
    "food101": {0: "dish no 0"},
    "sun397": {0: "scene 000", 1: "scene 003 outdoor"},
}
UNKNOWN_CHECKSUM = {"fgvc-aircraft", "split-cars196"}
NAMES = sorted(BUILDERS)


def module(name: str) -> ModuleType:
    return import_module(f"cl_clipfit.scenarios.{name.replace('-', '_')}")


def load(name: str, request: DataRequest, **options: Any) -> Source:
    scenario = module(name)
    (settings,) = [
        hint for key, hint in inspect.get_annotations(scenario.load).items() if key == "options"
    ]
    return scenario.load(settings(**options), request)


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CL_CLIPFIT_DATA", str(tmp_path / "cache"))


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Return what writes a data set to a folder; its label files count as the official ones."""

    def write(name: str) -> Path:
        root = tmp_path / "given"
        root.mkdir()
        BUILDERS[name](root)
        if name == "split-cifar10":
            folder = root / split_cifar10.CIFAR10.folder
            form = split_cifar10.CIFAR10
            parts = {
                part: {file: md5(folder / file) for file in getattr(form, part)}
                for part in ("train", "test", "meta")
            }
            monkeypatch.setattr(split_cifar10, "CIFAR10", replace(form, **parts))
            for part in ("train", "test"):
                monkeypatch.setattr(datasets.CIFAR10, f"{part}_list", list(parts[part].items()))
            meta = datasets.CIFAR10.meta | {"md5": parts["meta"]["batches.meta"]}
            monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
        if name == "flowers102":
            files = {
                key: (file, md5(root / "flowers-102" / file) if key != "image" else "")
                for key, (file, _) in datasets.Flowers102._file_dict.items()
            }
            monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)
        return root

    return write


@pytest.fixture
def served(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[str, Path], list[Path]]]:
    """Return what packs a data set and lets a local host serve its archives."""
    servers: list[Any] = []

    def start(name: str, root: Path) -> list[Path]:
        local, files = [], []
        (tmp_path / "packed").mkdir()
        for archive in module(name).ARCHIVES:
            files.append(pack(root, archive, tmp_path / "packed"))
            servers.append(serve(files[-1].read_bytes()))
            url = f"{servers[-1].__enter__().url.rpartition('/')[0]}/{archive.name}"
            checksum = f"md5:{md5(files[-1])}" if archive.checksum else ""
            local.append(replace(archive, url=url if archive.url else "", checksum=checksum))
        monkeypatch.setattr(module(name), "ARCHIVES", tuple(local))
        return files

    yield start
    for server in servers:  # each takes half a second to stop: nobody waits for it
        Thread(target=server.__exit__, args=(None, None, None)).start()


def pixels(picture: Any) -> bytes:
    return np.asarray(picture.convert("RGB")).tobytes()


def ours(data: Any) -> list[tuple[bytes, int]]:
    """Return pixels and label of each image."""
    if isinstance(data.images, ImageFiles):
        images = [pixels(open_image(path)) for path in data.images.paths]
    else:
        images = [image.permute(1, 2, 0).numpy().tobytes() for image in data.images]
    return list(zip(images, data.labels.tolist(), strict=True))


def reference(name: str, root: Path, seed: int = 42) -> list[list[tuple[bytes, int]]]:
    """Return the same as torchvision decodes it, training and test images."""
    kind, parts = REFERENCES[name]
    if parts is None:
        whole = kind(str(root))
        rows = [(pixels(picture), int(label)) for picture, label in whole]
        if name == "sun397":  # listed as the file system does
            rows = [rows[i] for i in np.argsort([str(path) for path in whole._image_files])]
        sizes = [int(0.8 * len(rows)), len(rows) - int(0.8 * len(rows))]
        draws = torch.Generator().manual_seed(seed)
        return [[rows[i] for i in part.indices] for part in random_split(rows, sizes, draws)]
    return [[(pixels(p), int(label)) for p, label in kind(str(root), **part)] for part in parts]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_and_archives_agree_with_torchvision(
    name: str,
    make: Callable[[str], Path],
    served: Callable[[str, Path], list[Path]],
    tmp_path: Path,
) -> None:
    scenario, root = module(name), make(name)
    assert name == scenario.NAME
    notes: list[str] = []
    unpacked = load(name, DataRequest(root, note=notes.append))
    expected = reference(name, root)
    assert [ours(unpacked.train), ours(unpacked.test)] == expected
    assert all(len({image for image, _ in part}) > len(part) // 2 for part in expected)
    labels = torch.cat([unpacked.train.labels, unpacked.test.labels])
    assert labels.unique().tolist() == list(range(scenario.CLASSES))
    assert len(unpacked.class_names) == len(set(unpacked.class_names)) == scenario.CLASSES
    kind = REFERENCES[name][0]
    if name in RENAMED:
        assert {n: unpacked.class_names[n] for n in RENAMED[name]} == RENAMED[name]
    else:
        own = kind(str(root), **REFERENCES[name][1][0])
        names = getattr(own, "classes", unpacked.class_names)  # torchvision 0.21's flowers: none
        assert list(unpacked.class_names) == [name.rstrip("?") for name in names]
    assert unpacked.origin["kind"] == "folder"
    assert unpacked.origin["verified"] is (name == "split-cifar10")  # by its files' own sums
    assert "unverified" in notes[0]

    files = served(name, root)
    # a set that nobody serves is given as its archives
    given = files[0].parent if name == "split-cars196" else None
    fetched = load(name, DataRequest(given))
    assert [ours(fetched.train), ours(fetched.test)] == expected
    assert fetched.class_names == unpacked.class_names
    assert fetched.origin["kind"] == "archive"
    assert fetched.origin["verified"] is (name not in UNKNOWN_CHECKSUM)
    again = load(name, DataRequest(files[0].parent))
    assert [ours(again.train), ours(again.test)] == expected


@pytest.mark.parametrize("name", [name for name in NAMES if REFERENCES[name][1] is None])
def test_a_split_is_drawn_by_its_seed(name: str, make: Callable[[str], Path]) -> None:
    root = make(name)
    for seed in (42, 7):
        source = load(name, DataRequest(root), split_seed=seed)
        assert [ours(source.train), ours(source.test)] == reference(name, root, seed)
        assert source.origin["split"] == "random 80/20"
        assert source.origin["split_seed"] == seed


def refusal(name: str, root: Path | None) -> str:
    with pytest.raises(UserError) as caught:
        load(name, DataRequest(root))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_piece_is_named(name: str, make: Callable[[str], Path], tmp_path: Path) -> None:
    root, scenario = make(name), module(name)
    expected = getattr(scenario, "UNPACKED", scenario.EXPECTED[0])
    for piece in [expected] if name == "caltech101" else scenario.EXPECTED:
        (root / piece).rename(tmp_path / "away")
        message = refusal(name, root)
        assert str(root) in message
        assert scenario.ARCHIVES[0].name in message
        assert scenario.EXPECTED[0] in message
        (tmp_path / "away").rename(root / piece)


DAMAGED = {  # a file to cut, and what the message says
    "split-cifar10": ("cifar-10-batches-py/test_batch", "not the official file"),
    "split-fashion-mnist": ("FashionMNIST/raw/train-images-idx3-ubyte", "cannot be read"),
    "mnist": ("MNIST/raw/t10k-labels-idx1-ubyte", "cannot be read"),
    "fgvc-aircraft": ("fgvc-aircraft-2013b/data/variants.txt", "cannot be read"),
    "dtd": ("dtd/dtd/labels/train1.txt", "of 23 classes, expected 47"),
    "flowers102": ("flowers-102/setid.mat", "cannot be read"),
    "food101": ("food-101/meta/test.json", "cannot be read"),
    "oxford-pets": ("oxford-iiit-pet/annotations/test.txt", "cannot be read"),
    "split-cars196": ("stanford_cars/devkit/cars_meta.mat", "cannot be read"),
    "sun397": ("SUN397/ClassName.txt", "cannot be read"),
}


@pytest.mark.parametrize("name", sorted(DAMAGED))
def test_a_damaged_label_file_is_explained(name: str, make: Callable[[str], Path]) -> None:
    root, (file, message) = make(name), DAMAGED[name]
    content = (root / file).read_bytes()
    lines = content.splitlines(keepends=True)
    cut = b"".join(lines[: len(lines) // 2]) if name == "dtd" else content[: len(content) // 2]
    (root / file).write_bytes(cut)
    assert message in refusal(name, root)


def test_folders_of_other_classes_are_explained(make: Callable[[str], Path]) -> None:
    root = make("eurosat")
    (root / "eurosat" / "2750" / "Moon").mkdir()
    assert "Moon" in refusal("eurosat", root)
    (root / "eurosat" / "2750" / "Moon" / "1.jpg").write_bytes(b"")
    assert "31 images of 11 classes, expected 10" in refusal("eurosat", root)


def test_labels_that_do_not_fit_are_explained(make: Callable[[str], Path]) -> None:
    root = make("mnist")
    file = root / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"\x0a")
    assert "expected one from 0 to 9 per image" in refusal("mnist", root)
    file.write_bytes(content[:4] + (29).to_bytes(4) + content[8:-1])
    assert "30 images and 29 labels" in refusal("mnist", root)


def test_class_names_must_agree_between_parts(make: Callable[[str], Path]) -> None:
    root = make("oxford-pets")
    file = root / "oxford-iiit-pet" / "annotations" / "test.txt"
    file.write_text(file.read_text().replace("long_haired_3_", "short_haired_3_"))
    message = refusal("oxford-pets", root)
    assert "class 'Long Haired 3' of 'trainval' has another name in 'test'" in message


def test_what_comes_by_hand_is_told(tmp_path: Path) -> None:
    message = refusal("split-cars196", None)
    assert f"put it at {tmp_path / 'cache' / 'split-cars196' / 'cars_train.tgz'}" in message
    assert "stanford_cars/devkit" in message
    assert "cars_test_annos_withlabels.mat in stanford_cars" in message


def test_caltech_names_read_well(make: Callable[[str], Path]) -> None:
    root = make("caltech101")
    names = load("caltech101", DataRequest(root)).class_names
    folders = datasets.Caltech101(str(root)).categories
    assert set(caltech101.NAMES) <= set(folders)
    assert not [name for name in names if "_" in name]
    by_folder = dict(zip(folders, names, strict=True))
    assert by_folder["ceiling_fan"] == "ceiling fan"
    assert by_folder["yin_yang"] == "yin and yang symbol"
    (root / "caltech101" / "101_ObjectCategories" / "wrench").rename(
        root / "caltech101" / "101_ObjectCategories" / "monkey_wrench"
    )
    assert "monkey wrench" in load("caltech101", DataRequest(root)).class_names


def checksums(archives: tuple[Archive, ...]) -> dict[str, str]:
    return {archive.url: archive.checksum.removeprefix("md5:") for archive in archives}


def test_addresses_and_checksums_are_those_torchvision_publishes() -> None:
    form, own = split_cifar10.CIFAR10, datasets.CIFAR10
    assert checksums(split_cifar10.ARCHIVES) == {own.url: own.tgz_md5}
    assert form.folder == own.base_folder
    assert form.train == dict(own.train_list)
    assert form.test == dict(own.test_list)
    assert form.meta == {own.meta["filename"]: own.meta["md5"]}
    assert form.names_key == own.meta["key"]
    assert mnist.HOST in datasets.MNIST.mirrors
    for name, kind in (("eurosat", datasets.EuroSAT), ("caltech101", datasets.Caltech101)):
        code = inspect.getsource(kind)
        for url, digest in checksums(module(name).ARCHIVES).items():
            # torchvision 0.21 has another address of Caltech-101
            assert (url in code and digest in code) or "drive.google.com" in code
    for name in NAMES:
        for archive in module(name).ARCHIVES:
            assert len(archive.checksum) == (0 if name in UNKNOWN_CHECKSUM else len("md5:") + 32)
    names = load_names(flowers102.NAMES)
    assert names == [n.rstrip("?") for n in getattr(datasets.Flowers102, "classes", names)]
    assert len(set(names)) == 102


def load_names(text: str) -> list[str]:
    return [" ".join(name.split()) for name in text.split(",")]
