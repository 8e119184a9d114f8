"""ImageNet, its relatives and CUB: each from a folder and from an archive, read independently."""

import csv
import hashlib
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from timm.data import imagenet_info
from torchvision.datasets import ImageFolder

from cl_clipfit import DataRequest, Source, UserError
from cl_clipfit.data.formats.imagenet import class_names, find_classes, read_folders, read_table
from cl_clipfit.data.images.lazy import ImageFiles
from cl_clipfit.data.source import ImageSet
from cl_clipfit.scenarios import (
    imagenet_a,
    imagenet_r,
    imagenet_sketch,
    imagenet_v2,
    objectnet,
    split_cub200,
    split_imagenet1k,
    split_imagenet100,
    split_imagenet_r,
    split_tiny_imagenet,
)
from tests.support import official_imagenet as official
from tests.support.official import serve
from tests.support.official_imagenet import ELSEWHERE, WNIDS, folders, packed, unpacked

V2 = "imagenetv2-matched-frequency-format-val"
PARTIAL = {"partial": True}
RELATIVES: list[tuple[ModuleType, dict[str, bytes], dict[str, Any], str]] = [
    (split_tiny_imagenet, official.tiny_imagenet(), {}, "tiny-imagenet-200.zip"),
    (split_imagenet_r, folders("imagenet-r", WNIDS[5:9], 10), PARTIAL, "imagenet-r.tar"),
    (imagenet_r, folders("imagenet-r", WNIDS[5:9], 3), {}, "imagenet-r.tar"),
    (imagenet_a, folders("imagenet-a", WNIDS[1:4], 2), {}, "imagenet-a.tar"),
    (imagenet_sketch, folders("sketch", WNIDS[::300], 2), {}, "ImageNet-Sketch.zip"),
    (imagenet_v2, folders(V2, ("0", "7", "70"), 2), {}, "imagenetv2-matched-frequency.tar.gz"),
    (split_cub200, official.cub200(), {}, "CUB_200_2011.tgz"),
]  # fmt: skip
NAMES = [module.NAME for module, *_ in RELATIVES]


def load(module: ModuleType, request: DataRequest | Path, **options: Any) -> Source:
    request = DataRequest(request) if isinstance(request, Path) else request
    return module.load(module.load.__annotations__["options"](**options), request)


def files(data: ImageSet) -> list[str]:
    """Return the files, each as folder and name."""
    assert isinstance(data.images, ImageFiles)
    assert all(path.is_file() for path in data.images.paths)
    return [f"{path.parent.name}/{path.name}" for path in data.images.paths]


def samples(data: ImageSet) -> list[tuple[str, int]]:
    return list(zip(map(str, data.images.paths), data.labels.tolist(), strict=True))


@pytest.mark.parametrize(("module", "content", "options", "name"), RELATIVES, ids=NAMES)
def test_folder_archive_and_download_give_the_same(
    module: ModuleType,
    content: dict[str, bytes],
    options: dict[str, Any],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CL_CLIPFIT_DATA", str(tmp_path / "cache"))
    (archive,) = module.ARCHIVES
    assert archive.name == name
    data = packed(name, content)
    there = load(module, unpacked(tmp_path / "there", content), **options)
    with serve(data) as server:
        checksum = f"sha256:{hashlib.sha256(data).hexdigest()}"
        changed = replace(archive, url=server.url, checksum=checksum, name=name)
        monkeypatch.setattr(module, "ARCHIVES", (changed,))
        fetched = load(module, DataRequest(), **options)
        again = load(module, DataRequest(), **options)
        assert server.ranges == [""]
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / name).write_bytes(data)
    monkeypatch.setenv("CL_CLIPFIT_DATA", str(tmp_path / "cache2"))
    copied = load(module, tmp_path / "copy", **options)
    assert (there.origin["kind"], there.origin["verified"]) == ("folder", False)
    for source in (fetched, again, copied):
        assert (source.origin["kind"], source.origin["verified"]) == ("archive", True)
        assert source.class_names == there.class_names
        assert source.templates == there.templates
        for part in ("train", "test"):
            one, other = getattr(source, part), getattr(there, part)
            assert files(one) == files(other)
            assert torch.equal(one.labels, other.labels)
    assert len(there.test) > 0


def test_names_and_ids_of_imagenet_are_in_label_order() -> None:
    names = class_names()
    assert list(names) == sorted(names) == WNIDS
    assert list(names.values()) == list(IMAGENET_CLASSNAMES)
    # as ILSVRC 2012 has them: label, id, name
    known = {
        0: ("n01440764", "tench"), 207: ("n02099601", "Golden Retriever"),
        517: ("n03126707", "construction crane"), 999: ("n15075141", "toilet paper"),
    }  # fmt: skip
    assert {label: list(names.items())[label] for label in known} == known
    assert names["n02012849"] == "crane bird"


def test_classes_are_found_by_id_or_name_and_doubts_are_told() -> None:
    assert find_classes(["Tench", "n01443537", "golden retriever"]) == [
        "n01440764", "n01443537", "n02099601"
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"called 'toilet papr'\. Did you mean 'toilet paper'"):
        find_classes(["toilet papr"])
    with pytest.raises(UserError, match=r"'missile' names two classes.*n03773504 or n04008634"):
        find_classes(["missile"])
    with pytest.raises(UserError, match="names n01440764 twice"):
        find_classes(["n01440764", "tench"])


def test_imagenet1k_agrees_with_torchvision(tmp_path: Path) -> None:
    root = unpacked(tmp_path / "tree", official.imagenet(WNIDS, train=2))
    source = load(split_imagenet1k, root)
    for part, data in (("train", source.train), ("val", source.test)):
        reference = ImageFolder(str(root / part))
        assert samples(data) == reference.samples
    assert source.class_names == tuple(IMAGENET_CLASSNAMES)
    assert source.templates == ("a photo of a {}.",)
    assert (len(source.train), len(source.test)) == (2000, 1000)
    (tmp_path / "coop").mkdir()
    (tmp_path / "coop" / "images").symlink_to(root)
    assert files(load(split_imagenet1k, tmp_path / "coop").test) == files(source.test)


def test_missing_classes_are_counted_or_left_out(tmp_path: Path) -> None:
    here = [WNIDS[700], WNIDS[3], WNIDS[20]]
    root = unpacked(tmp_path, official.imagenet(here))
    (root / "train" / WNIDS[9]).mkdir()  # no such folder in val
    unpacked(root, {"val/ILSVRC2012_val_00000001.JPEG": b"", "train/.hidden/x.jpg": b""})
    with pytest.raises(UserError, match=r"no folder for 997 of 1000 .*n01440764; .*partial=true"):
        load(split_imagenet1k, root)
    source = load(split_imagenet1k, root, partial=True)
    assert source.class_names == tuple(IMAGENET_CLASSNAMES[label] for label in (3, 20, 700))
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert files(source.test)[2] == f"{WNIDS[700]}/ILSVRC2012_val_00000001.JPEG"
    assert source.origin["classes"] == 3
    (root / "val" / WNIDS[9]).mkdir()
    with pytest.raises(UserError, match=rf"{WNIDS[9]} holds no images"):
        load(split_imagenet1k, root, partial=True)


@pytest.mark.parametrize("module", [split_imagenet1k, split_imagenet100])
def test_without_a_tree_the_files_to_fetch_are_named(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    flat = unpacked(
        tmp_path / "flat", {"train/1.jpg": b"", "val/ILSVRC2012_val_00000001.JPEG": b""}
    )
    for request in (DataRequest(), DataRequest(tmp_path / "empty"), DataRequest(flat)):
        with pytest.raises(UserError, match=r"ILSVRC2012_img_train\.tar") as caught:
            load(module, request)
        for text in ("ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz", "train/WNID/*"):
            assert text in str(caught.value)
        assert "\n" not in str(caught.value)


def test_imagenet100_is_the_known_subset_in_its_order(tmp_path: Path) -> None:
    order = [54, 7, 894, 512, 126, 337, 988, 11, 284, 493]  # as published with LUCIR and PODNet
    chosen = np.random.RandomState(1993).permutation(1000)[:100]
    root = unpacked(tmp_path, official.imagenet([WNIDS[label] for label in chosen], train=1))
    source = load(split_imagenet100, root)
    assert source.class_names[:10] == tuple(IMAGENET_CLASSNAMES[label] for label in order)
    assert files(source.train) == [f"{WNIDS[label]}/{WNIDS[label]}_0.JPEG" for label in chosen]
    assert source.train.labels.tolist() == source.test.labels.tolist() == list(range(100))


def test_imagenet100_takes_a_list_of_classes(tmp_path: Path) -> None:
    root = unpacked(tmp_path / "tree", official.imagenet(WNIDS[:6]))
    (tmp_path / "list.txt").write_text("n01494475\n\ntench\nn01484850\n")
    source = load(split_imagenet100, root, classes=str(tmp_path / "list.txt"))
    assert source.class_names == ("hammerhead shark", "tench", "great white shark")
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert files(source.train)[0] == "n01494475/n01494475_0.JPEG"
    with pytest.raises(UserError, match=r"no folder for 1 of 2 classes, the first is n15075141"):
        load(split_imagenet100, root, classes=["tench", "toilet paper"])
    with pytest.raises(UserError, match="no class of ImageNet is called 'dragon'"):
        load(split_imagenet100, root, classes=["dragon"])
    with pytest.raises(UserError, match=r"for 1 of 1 classes, the first is n15075141; .*classes="):
        load(split_imagenet100, root, classes=["toilet paper"])


def test_tiny_imagenet_agrees_with_independent_readings(tmp_path: Path) -> None:
    root = unpacked(tmp_path, official.tiny_imagenet()) / "tiny-imagenet-200"
    source = load(split_tiny_imagenet, tmp_path)
    reference = ImageFolder(str(root / "train"))
    assert samples(source.train) == reference.samples
    with (root / "val" / "val_annotations.txt").open() as file:
        rows = [(row[0], reference.class_to_idx[row[1]]) for row in csv.reader(file, "excel-tab")]
    expected = [(str(root / "val" / "images" / name), label) for name, label in rows]
    assert samples(source.test) == expected
    assert len(source.test) == 12
    # by id: n00007846, n01440764, n02012849, n02403004, n03042490, n15075141
    names = ("person", "tench", "crane bird", "ox", "cliff dwelling", "toilet paper")
    assert source.class_names == names


def test_damaged_tables_of_tiny_imagenet_are_told(tmp_path: Path) -> None:
    root = unpacked(tmp_path, official.tiny_imagenet()) / "tiny-imagenet-200"
    table = root / "val" / "val_annotations.txt"
    whole = table.read_text()
    for text, message in (
        (f"val_1.JPEG\t{WNIDS[7]}\t0\n", f"disagree about {WNIDS[7]}"),
        ("val_1.JPEG\n", "entry 1: expected 3 columns, got 1"),
        (
            f"val_999.JPEG\t{WNIDS[0]}\t0\n",
            r"names 1 images that are missing, the first is .*val_999",
        ),
    ):
        table.write_text(text)
        with pytest.raises(UserError, match=message):
            load(split_tiny_imagenet, tmp_path)
    table.write_text(whole)
    (root / "words.txt").write_text(f"{ELSEWHERE[1]}\tox\n")
    with pytest.raises(UserError, match=rf"words\.txt and wnids\.txt .* {ELSEWHERE[0]}"):
        load(split_tiny_imagenet, tmp_path)
    (root / "words.txt").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(UserError, match="cannot be read as text"):
        load(split_tiny_imagenet, tmp_path)


def timm_list(name: str) -> list[str]:
    """Return the classes of ImageNet-A or -R as timm lists them."""
    folder = Path(imagenet_info.__file__).parent / "_info"
    return (folder / f"imagenet_{name}_synsets.txt").read_text().split()


def test_imagenet_r_is_divided_by_class(tmp_path: Path) -> None:
    wnids = timm_list("r")
    content = folders("imagenet-r", wnids, 5) | folders("imagenet-r", wnids[:1], 13)
    unpacked(tmp_path, content | {"imagenet-r/README.txt": b"text"})
    source = load(split_imagenet_r, tmp_path, split_seed=7)
    labels = [WNIDS.index(wnid) for wnid in wnids]
    assert source.class_names == tuple(IMAGENET_CLASSNAMES[label] for label in labels)
    assert len(wnids) == 200
    everything = ImageFolder(str(tmp_path / "imagenet-r"))
    draws, test = np.random.RandomState(7), []
    for label in range(200):
        members = [sample for sample in everything.samples if sample[1] == label]
        chosen = draws.permutation(len(members))[: round(len(members) / 5)]
        test += [members[i] for i in sorted(chosen)]
    assert samples(source.test) == test
    assert len(test) == 3 + 199
    assert sorted(samples(source.train) + test) == sorted(everything.samples)
    assert source.origin["split_seed"] == 7
    assert source.origin["split_test"] == 0.2
    other = load(split_imagenet_r, tmp_path)
    assert samples(other.test) != test
    assert samples(other.test) == samples(load(split_imagenet_r, tmp_path).test)
    everything_tested = load(imagenet_r, tmp_path)
    assert samples(everything_tested.test) == everything.samples
    assert len(everything_tested.train) == 0
    assert everything_tested.class_names == source.class_names


def test_incomplete_renditions_must_be_wanted(tmp_path: Path) -> None:
    unpacked(tmp_path, folders("imagenet-r", WNIDS[:2], 4) | folders("imagenet-r", WNIDS[2:3], 1))
    with pytest.raises(UserError, match=r"only 3 of 200 classes.*partial=true"):
        load(split_imagenet_r, tmp_path)
    with pytest.raises(UserError, match="'great white shark' has only 1 images"):
        load(split_imagenet_r, tmp_path, partial=True)


def test_imagenet_a_is_ranked_among_its_classes(tmp_path: Path) -> None:
    wnids = timm_list("a")
    unpacked(tmp_path, folders("imagenet-a", wnids, 1))
    notes: list[str] = []
    source = load(imagenet_a, DataRequest(tmp_path, note=notes.append))
    assert source.class_names == tuple(IMAGENET_CLASSNAMES[WNIDS.index(wnid)] for wnid in wnids)
    assert samples(source.test) == ImageFolder(str(tmp_path / "imagenet-a")).samples
    assert not any("classes" in note for note in notes)
    extra = unpacked(tmp_path, folders("imagenet-a", [ELSEWHERE[0]], 1))
    with pytest.raises(UserError, match=f"{ELSEWHERE[0]} is not a class of ImageNet-1k"):
        load(imagenet_a, extra)


def test_folders_that_are_another_data_set_are_told(tmp_path: Path) -> None:
    unpacked(tmp_path, folders("imagenet-a", WNIDS[:201], 1))
    with pytest.raises(UserError, match=r"has 201 classes in WNID.*imagenet-a has 200"):
        load(imagenet_a, tmp_path)
    unpacked(tmp_path / "b", {"sketch/tench/1.jpg": b""})
    with pytest.raises(UserError, match="has 0 classes in WNID"):
        load(imagenet_sketch, tmp_path / "b")


def test_a_part_of_a_probe_is_told(tmp_path: Path) -> None:
    notes: list[str] = []
    unpacked(tmp_path, folders("sketch", WNIDS[10:12], 3))
    source = load(imagenet_sketch, DataRequest(tmp_path, note=notes.append))
    assert any("only 2 of 1000 classes" in note for note in notes)
    assert source.class_names == tuple(IMAGENET_CLASSNAMES[10:12])
    assert source.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.origin["classes"] == 2


def test_imagenet_v2_counts_folders_as_numbers(tmp_path: Path) -> None:
    unpacked(tmp_path, folders(V2, map(str, range(1000)), 1, "jpeg"))
    source = load(imagenet_v2, tmp_path)
    assert source.class_names == tuple(IMAGENET_CLASSNAMES)
    for path, label in zip(source.test.images.paths, source.test.labels.tolist(), strict=True):
        assert int(path.parent.name) == label
    assert source.test.labels.tolist() == list(range(1000))
    unpacked(tmp_path, {f"{V2}/1000/1.jpeg": b""})
    with pytest.raises(UserError, match="1000 is not a label from 0 to 999"):
        load(imagenet_v2, tmp_path)
    part = load(imagenet_v2, unpacked(tmp_path / "b", folders(V2, ("10", "2", "999"), 1, "jpeg")))
    assert part.class_names == ("great white shark", "brambling", "toilet paper")
    assert files(part.test) == ["2/2_0.jpeg", "10/10_0.jpeg", "999/999_0.jpeg"]


def test_cub_agrees_with_its_tables(tmp_path: Path) -> None:
    root = unpacked(tmp_path, official.cub200()) / "CUB_200_2011"
    source = load(split_cub200, tmp_path)
    names = ("Black footed Albatross", "Laysan Albatross", "Parakeet Auklet")
    assert source.class_names == names
    assert source.templates == ("a photo of a {}, a type of bird.",)
    images = ImageFolder(str(root / "images")).samples
    assert samples(source.train) == [sample for n, sample in enumerate(images) if n % 3 != 0]
    assert samples(source.test) == [sample for n, sample in enumerate(images) if n % 3 == 0]


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("images.txt", "796102", "0", r"names 1 images that are missing, .*Auklet_0002_0\.jpg"),
        ("images.txt", "9 003", "10 003", r"class_labels\.txt and images\.txt name different"),
        ("image_class_labels.txt", "9 3", "9 4", r"labels\.txt contains '4', which is not"),
        ("train_test_split.txt", "9 1", "9 2", r"split\.txt contains '2', which is not"),
        ("classes.txt", "3 003", "4 003", r"must number the classes 1, 2, 3"),
        ("classes.txt", "3 003.Parakeet_Auklet", "3", "entry 3: expected 2 columns, got 1"),
    ],
)  # fmt: skip
def test_contradictions_in_cub_are_told(
    table: str, old: str, new: str, message: str, tmp_path: Path
) -> None:
    file = unpacked(tmp_path, official.cub200()) / "CUB_200_2011" / table
    before, after = file.read_text().rsplit(old, 1)
    file.write_text(before + new + after)
    with pytest.raises(UserError, match=message):
        load(split_cub200, tmp_path)


def test_objectnet_keeps_the_overlap_under_its_own_names(tmp_path: Path) -> None:
    unpacked(tmp_path, official.objectnet())
    notes: list[str] = []
    source = load(objectnet, DataRequest(tmp_path, note=notes.append))
    assert source.class_names == ("Alarm clock", "TV")
    assert files(source.test) == [
        "alarm_clock/alarm_clock_0.png", "alarm_clock/alarm_clock_1.png", "tv/tv_0.png",
        "tv/tv_1.png",
    ]  # fmt: skip
    assert source.test.labels.tolist() == [0, 0, 1, 1]
    assert len(source.train) == 0
    assert any("only 2 of 113" in note for note in notes)
    inside = load(objectnet, tmp_path / "objectnet-1.0")
    assert samples(inside.test) == samples(source.test)
    with pytest.raises(UserError, match=r"objectnet\.dev.*--data-dir"):
        load(objectnet, DataRequest())
    overlap = tmp_path / objectnet.FOLDER / objectnet.OVERLAP
    for text, message in (
        ('{"Stove": "stove"}', "names no folder for 'Stove'"),
        ('["TV"]', "must map names to names"),
        ('{"TV": 3}', "must map names to names"),
        ("{", "is not a valid JSON file"),
    ):
        overlap.write_text(text)
        with pytest.raises(UserError, match=message):
            load(objectnet, tmp_path)


def test_checksums_are_those_that_avalanche_publishes() -> None:
    from avalanche.benchmarks.datasets.cub200.cub200 import CUB200
    from avalanche.benchmarks.datasets.tiny_imagenet.tiny_imagenet import TinyImagenet

    (tiny,), (cub,) = split_tiny_imagenet.ARCHIVES, split_cub200.ARCHIVES
    assert (tiny.name, tiny.url) == TinyImagenet.filename
    assert tiny.checksum == f"md5:{TinyImagenet.md5}"
    assert (cub.name, cub.checksum) == (CUB200.filename, f"md5:{CUB200.tgz_md5}")


def test_listing_opens_and_stats_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing of 1.28 million files takes seconds only where no file is asked for anything."""
    wnids = WNIDS[:20]
    for wnid in wnids:
        (tmp_path / wnid).mkdir()
        for i in range(500):
            (tmp_path / wnid / f"{i}.JPEG").touch()
    asked: list[Any] = []
    for name in ("stat", "is_file", "open", "exists"):
        monkeypatch.setattr(Path, name, lambda self, *a, **k: asked.append(self))
    start = time.perf_counter()
    data = read_folders(tmp_path, wnids)
    assert time.perf_counter() - start < 2  # 0.02 s where nothing else runs
    assert not asked
    assert len(data) == 10_000
    with pytest.raises(UserError, match="cannot read the folder"):
        read_folders(tmp_path, ["n00000000"])


def test_a_table_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lost\.txt cannot be read as text"):
        read_table(tmp_path / "lost.txt", 1)
