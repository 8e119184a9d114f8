"""Streams of people's own images in folders, counted independently."""

import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from cl_clipfit import DataRequest, ImageSet, Source, UserError, build_scenario
from cl_clipfit.data.formats.folders import list_classes
from cl_clipfit.data.formats.trees import SplitOptions
from cl_clipfit.scenarios import domain_incremental, folder
from cl_clipfit.scenarios.domain_incremental import DomainOptions


def draw(root: Path, counts: dict[str, int], suffix: str = ".png") -> Path:
    """Write `counts[class]` small images per class."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (4, 3), (number, 0, 0)).save(root / name / f"{number}{suffix}")
    return root


def load(root: Path, **options: object) -> Source:
    return folder.load(SplitOptions.model_validate(options), DataRequest(root))


def refused(root: Path, message: str, **options: object) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(root, **options)
    assert "\n" not in str(caught.value)


def members(data: ImageSet, names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the class name that each label says, and the one that the path says."""
    labels = [names[label] for label in data.labels.tolist()]
    return list(zip(labels, [path.parent.name for path in data.images.paths], strict=True))


@pytest.mark.parametrize("part", ["test", "val", "valid", "Test"])
def test_given_parts_are_those_that_torchvision_lists(tmp_path: Path, part: str) -> None:
    draw(tmp_path / "train", {"maple_tree": 12, "Zebra": 3, "ant": 4})
    draw(tmp_path / part, {"maple_tree": 2, "Zebra": 1, "ant": 5}, ".JPG")
    (tmp_path / "annotations").mkdir()
    source = load(tmp_path)
    assert source.class_names == ("Zebra", "ant", "maple tree")
    for data, name in ((source.train, "train"), (source.test, part)):
        reference = ImageFolder(tmp_path / name)
        assert Counter(reference.samples) == Counter(
            zip(map(str, data.images.paths), data.labels.tolist(), strict=True)
        )
    origin = {"kind": "folder", "name": tmp_path.name, "verified": False, "drawn": False}
    assert source.origin == origin
    names = [path.name for path in source.train.images.paths[-12:]]
    assert names == [f"{n}.png" for n in range(12)]  # 9 before 10


def test_test_comes_before_val(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 1), ("test", 2)):
        draw(tmp_path / part, {"a": count, "b": count})
    assert [len(data) for data in (load(tmp_path).train, load(tmp_path).test)] == [6, 4]


def test_one_tree_is_split_by_class_and_always_alike(tmp_path: Path) -> None:
    draw(tmp_path, {"a": 10, "b": 20, "c": 2, "d": 7})
    source, again = load(tmp_path), load(tmp_path)
    every = set(tmp_path.glob("*/*.png"))
    train, test = set(source.train.images.paths), set(source.test.images.paths)
    assert train | test == every
    assert not train & test
    assert Counter(path.parent.name for path in test) == {"a": 2, "b": 4, "c": 1, "d": 1}
    for data in (source.train, source.test):
        assert all(label == path for label, path in members(data, source.class_names))
    assert test == set(again.test.images.paths)
    assert source.sha256 == again.sha256
    assert test != set(load(tmp_path, split_seed=1).test.images.paths)
    assert len(load(tmp_path, test_share=0.5).test) == 5 + 10 + 1 + 4
    assert len(load(tmp_path, test_share=0.999).train) == 4  # one a class stays
    drawn = {"drawn": True, "test_share": 0.2, "split_seed": 0}
    origin = {"kind": "folder", "name": tmp_path.name, "verified": False}
    assert source.origin == {**origin, **drawn}
    scenario = build_scenario("folder", source, tasks=2)
    assert scenario.train_samples == [8 + 16, 1 + 6]


def test_files_at_any_depth_and_junk_beside_them(tmp_path: Path) -> None:
    draw(tmp_path, {"a": 2, "a/deep/deeper": 2, "b": 2})
    for junk in ("a/.hidden.png", "a/Thumbs.db", "a/notes.txt", "b/.DS_Store", "LICENSE"):
        (tmp_path / junk).write_bytes(b"junk")
    for junk in (".git", "__MACOSX", "a/.cache"):
        (tmp_path / junk).mkdir()
        Image.new("L", (1, 1)).save(tmp_path / junk / "x.png")
    names, files, labels = list_classes(tmp_path)
    assert names == ("a", "b")
    found = [path.relative_to(tmp_path).as_posix() for path in files.paths]
    assert found == [
        "a/0.png", "a/1.png", "a/deep/deeper/0.png", "a/deep/deeper/1.png", "b/0.png", "b/1.png"
    ]  # fmt: skip
    assert labels.tolist() == [0, 0, 0, 0, 1, 1]
    names, _, labels = list_classes(tmp_path, ("c", "b", "a"))
    assert names == ("c", "b", "a")
    assert labels.tolist() == [2, 2, 2, 2, 1, 1]
    with pytest.raises(UserError, match=r"no class is called 'b'.*Known: a"):
        list_classes(tmp_path, ("a",))


def test_names_sort_naturally_whatever_they_are(tmp_path: Path) -> None:
    wanted = ["1.png", "2.png", "10.png", "a1b2.png", "a1b10.png", "a1²3.png", "img.png"]
    (tmp_path / "c").mkdir()
    shuffled = random.Random(0).sample(wanted, len(wanted))
    for name in shuffled:
        Image.new("L", (1, 1)).save(tmp_path / "c" / name)
    found = [path.name for path in list_classes(tmp_path)[1].paths]
    assert [name for name in found if "²" not in name] == [n for n in wanted if "²" not in n]


def test_links_are_followed_wherever_they_point(tmp_path: Path) -> None:
    """A hub's cache links each file, a shared disk whole folders."""
    plain = draw(tmp_path / "plain" / "train", {"a": 2, "b": 3}).parent
    draw(plain / "test", {"a": 1, "b": 1})
    blobs, snapshot, shared = (tmp_path / name for name in ("blobs", "snapshots/r", "shared"))
    blobs.mkdir()
    for number, file in enumerate(sorted(plain.rglob("*.png"))):
        (blobs / f"{number}").write_bytes(file.read_bytes())
        link = snapshot / file.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / f"{number}", link.parent))
    shared.mkdir()
    for part in ("train", "test"):
        (shared / part).symlink_to(plain / part)
    classes = tmp_path / "classes"
    for part in ("train", "test"):
        for name in ("a", "b"):
            (classes / part).mkdir(parents=True, exist_ok=True)
            (classes / part / name).symlink_to(plain / part / name)
    assert len({load(root).sha256 for root in (plain, snapshot, shared, classes)}) == 1


def test_every_real_folder_of_a_class_is_visited_once(tmp_path: Path) -> None:
    data = draw(tmp_path, {"a": 2, "b": 2, "b/deep": 1})
    (data / "a" / "link.png").symlink_to(data / "b" / "0.png")
    (data / "a" / "up").symlink_to(data)
    (data / "b" / "again").symlink_to(data / "b" / "deep")
    assert len(list_classes(data)[1]) == 2 + 1 + 3 + 3  # `up` brings b, not a again
    circle = draw(tmp_path / "circle", {f"a/{n}": 1 for n in range(12)})
    for one in (circle / "a").iterdir():
        for other in (circle / "a").iterdir():
            (one / f"to {other.name}").symlink_to(other)
    (circle / "a" / "itself").symlink_to("itself")
    assert len(list_classes(circle)[1]) == 12 + 1  # that link is an image that cannot be read


@pytest.mark.parametrize("missing", ["train", "train/a"])
def test_a_link_to_a_missing_folder_is_named(tmp_path: Path, missing: str) -> None:
    for part in ("train", "test"):
        draw(tmp_path / part, {"a": 1, "b": 1})
    shutil.rmtree(tmp_path / missing)
    (tmp_path / missing).symlink_to("/mnt/not/mounted")
    refused(tmp_path, rf"{missing} is a link whose target is missing: restore the target")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--data-dir names a folder with train/CLASS"):
        folder.load(SplitOptions(), DataRequest())
    refused(tmp_path / "nowhere", "--data-dir names a folder")
    refused(tmp_path, "holds no images: expected")
    one = draw(tmp_path / "one", {"a": 2, "b": 1})
    refused(one, r"one/b holds one image: at least two are needed")
    (one / "c").mkdir()
    refused(one, r"one/c holds no images")
    both = draw(tmp_path / "both", {"maple_tree": 2, "maple tree": 2})
    refused(both, r"maple tree and .*maple_tree are the same class, 'maple tree'")
    unreadable = draw(tmp_path / "unreadable", {"a": 2, "b\nc": 2})
    refused(unreadable, r"b\\nc': the name of a class folder must be readable")
    for part in ("train", "test"):
        draw(tmp_path / "parts" / part, {"a": 1, "b": 1, f"only_{part}": 1})
    refused(tmp_path / "parts", r"class 'only_test' is in test/ but not in train/")
    (tmp_path / "parts" / "test" / "only_test").rename(tmp_path / "parts" / "test" / "only_train")
    draw(tmp_path / "parts" / "train", {"more": 1})
    refused(tmp_path / "parts", r"class 'more' is in train/ but not in test/")
    draw(tmp_path / "half" / "train", {"a": 2})
    refused(tmp_path / "half", r"has train/ but no test/, val/ or valid/.*half/train itself")
    assert load(tmp_path / "half" / "train").class_names == ("a",)
    (tmp_path / "half" / "train").rename(tmp_path / "half" / "test")
    refused(tmp_path / "half", r"has test/ but no train/")
    transport = draw(tmp_path / "transport", {"train": 2, "ship": 2})  # a class called so
    assert load(transport).class_names == ("ship", "train")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    draw(tmp_path, {"a": 2})
    (tmp_path / "a").chmod(0)
    refused(tmp_path, "cannot read")


COUNTS = {"photo": {"cat": 5, "dog": 10}, "art": {"cat": 15, "dog": 4, "owl": 6}}


def domains(root: Path, notes: list[str] | None = None, **options: object) -> Source:
    request = DataRequest(root, note=(notes if notes is not None else []).append)
    return domain_incremental.load(DomainOptions.model_validate(options), request)


def test_every_domain_is_a_task_with_shared_classes(tmp_path: Path) -> None:
    for name, counts in COUNTS.items():
        draw(tmp_path / name, counts)
    for part, count in (("train", 3), ("test", 2)):
        draw(tmp_path / "sketch" / part, {"dog": count, "owl": count})
    notes: list[str] = []
    source = domains(tmp_path, notes)
    assert source.class_names == ("cat", "dog", "owl")
    assert source.task_names == ("art", "photo", "sketch")
    assert [note.partition(":")[0] for note in notes] == [
        "photo lacks 1 of 3 classes", "sketch lacks 1 of 3 classes"
    ]  # fmt: skip
    test = {
        ("art", "cat"): 3, ("art", "dog"): 1, ("art", "owl"): 1, ("photo", "cat"): 1,
        ("photo", "dog"): 2, ("sketch", "dog"): 2, ("sketch", "owl"): 2,
    }  # fmt: skip
    train = {(d, c): n - test[d, c] for d, counts in COUNTS.items() for c, n in counts.items()}
    train |= {("sketch", "dog"): 3, ("sketch", "owl"): 3}
    for data, wanted in ((source.train, train), (source.test, test)):
        assert data.tasks is not None
        said = [
            (source.task_names[task], source.class_names[label])
            for task, label in zip(data.tasks.tolist(), data.labels.tolist(), strict=True)
        ]
        assert Counter(said) == wanted
        parts = [path.relative_to(tmp_path).parts for path in data.images.paths]
        assert said == [(part[0], part[-2]) for part in parts]
    drawn = {"drawn": True, "test_share": 0.2, "split_seed": 0}
    origin = {"kind": "folder", "name": tmp_path.name, "verified": False}
    assert source.origin == {**origin, **drawn}
    scenario = build_scenario("domain-incremental", source)
    assert scenario.train_samples == [20, 12, 6]
    assert scenario.test_samples == [5, 3, 4]


def test_the_order_of_domains_is_a_choice(tmp_path: Path) -> None:
    for name, counts in COUNTS.items():
        draw(tmp_path / name, counts)
    turned = domains(tmp_path, order=["photo", "art"])
    assert turned.task_names == ("photo", "art")
    assert turned.train.tasks is not None
    assert turned.train.tasks.bincount().tolist() == [12, 20]
    assert turned.class_names == ("cat", "dog", "owl")
    for order, message in (
        (["photo", "artt"], r"no domain 'artt'. Did you mean 'art'"),
        (["art"], "must name each domain once: art, photo"),
        (["art", "art", "photo"], "must name each domain once"),
    ):
        with pytest.raises(UserError, match=message):
            domains(tmp_path, order=order)


def test_a_folder_without_domains_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"DOMAIN/CLASS"):
        domain_incremental.load(DomainOptions(), DataRequest())
    with pytest.raises(UserError, match="holds no domains"):
        domains(tmp_path)
    draw(tmp_path, {"cat": 3})  # classes where domains are expected
    with pytest.raises(
        UserError, match=r"cat holds images but no folders of classes, as in cat/CLASS"
    ):
        domains(tmp_path)
