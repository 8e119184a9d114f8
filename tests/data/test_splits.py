"""Split files, and draws of test images."""

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cl_clipfit import ImageSet, Source, UserError
from cl_clipfit.data.formats.splits import apply_split, split_by_class
from cl_clipfit.data.images.lazy import ImageFiles

TEMPLATES = ("a photo of a {}.",)


def image_set(rows: dict[str, int], tasks: list[int] | None = None) -> ImageSet:
    return ImageSet(
        ImageFiles(tuple(map(Path, rows))),
        torch.tensor(list(rows.values()), dtype=torch.int64),
        None if tasks is None else torch.tensor(tasks),
    )


def build() -> Source:
    """Return six images of three classes; two folders have files of the same names."""
    train = {"/data/train/cat/1.jpg": 0, "/data/train/cat/2.jpg": 0, "/data/train/dog/1.jpg": 1}
    test = {"/data/val/cat/1.jpg": 0, "/data/val/dog/9.jpg": 1, "/data/val/emu/7.jpg": 2}
    origin = {"kind": "folder", "verified": False, "split": "old", "split_seed": 3, "classes": 3}
    return Source(("cat", "dog", "emu"), TEMPLATES, image_set(train), image_set(test), origin)


def write(folder: Path, content: Any) -> Path:
    file = folder / "split.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def rows(data: ImageSet) -> list[tuple[str, int]]:
    return [(str(p), n) for p, n in zip(data.images.paths, data.labels.tolist(), strict=True)]


def test_a_split_of_coop_gives_images_labels_and_names(tmp_path: Path) -> None:
    content = {
        "train": [["emu/7.jpg", 1, "big_bird"], ["dog/9.jpg", 0, "hound"]],
        "val": [["cat/2.jpg", 2, "cat"], ["no/such.jpg", 2, "cat"]],
        "test": [["train/dog/1.jpg", 0, "hound"]],
    }
    file = write(tmp_path, content)
    source = apply_split(build(), file)
    assert source.class_names == ("hound", "big bird")
    assert rows(source.train) == [("/data/val/emu/7.jpg", 1), ("/data/val/dog/9.jpg", 0)]
    assert rows(source.test) == [("/data/train/dog/1.jpg", 0)]
    assert source.templates == TEMPLATES
    assert source.origin == {
        "kind": "folder", "verified": False, "split": "split.json", "split_val_unused": 2,
        "classes": 2,
        "split_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }  # fmt: skip


def test_a_list_of_paths_keeps_labels_and_names(tmp_path: Path) -> None:
    content = {"train": ["emu/7.jpg", "val/cat/1.jpg"], "test": ["./train//cat/1.jpg", "9.jpg"]}
    source = apply_split(build(), write(tmp_path, content))
    assert source.class_names == ("cat", "dog", "emu")
    assert rows(source.train) == [("/data/val/emu/7.jpg", 2), ("/data/val/cat/1.jpg", 0)]
    assert rows(source.test) == [("/data/train/cat/1.jpg", 0), ("/data/val/dog/9.jpg", 1)]
    assert source.origin["split_val_unused"] == 0


def test_paths_of_other_machines_are_found_by_their_ending(tmp_path: Path) -> None:
    content = {
        "train": ["/home/ann/sets/train/cat/1.jpg", "D:\\sets\\val\\cat\\1.jpg"],
        "test": ["elsewhere/emu/7.jpg"],
    }
    source = apply_split(build(), write(tmp_path, content))
    assert [path for path, _ in rows(source.train)] == [
        "/data/train/cat/1.jpg", "/data/val/cat/1.jpg"
    ]  # fmt: skip
    assert rows(source.test) == [("/data/val/emu/7.jpg", 2)]


def test_tasks_stay_with_their_images(tmp_path: Path) -> None:
    train = image_set({"/d/a/1.jpg": 0, "/d/a/2.jpg": 0}, [0, 1])
    test = image_set({"/d/b/3.jpg": 1}, [1])
    source = Source(("a", "b"), TEMPLATES, train, test, task_names=("day", "night"))
    split = apply_split(source, write(tmp_path, {"train": ["b/3.jpg"], "test": ["2.jpg", "1.jpg"]}))
    assert split.train.tasks is not None
    assert split.test.tasks is not None
    assert split.train.tasks.tolist() == [1]
    assert split.test.tasks.tolist() == [1, 0]


ONE = ["emu/7.jpg", 0, "emu"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a valid JSON file"),
        ("[" * 100_000, "is not a valid JSON file"),
        (["cat/2.jpg"], "has no list 'train' of images: expected"),
        ({"train": ["cat/2.jpg"]}, "has no list 'test' of images"),
        ({"train": ["cat/2.jpg"], "test": []}, "has no list 'test' of images"),
        ({"train": ["cat/2.jpg"], "test": {"a": 1}}, "has no list 'test' of images"),
        ({"train": ["emu/7.jpg", 3], "test": [ONE]}, "'train', entry 2 is invalid"),
        ({"train": [["emu/7.jpg", 0]], "test": [ONE]}, "'train', entry 1 is invalid"),
        ({"train": [ONE], "test": [["cat/2.jpg", True, "cat"]]}, "'test', entry 1 is invalid"),
        ({"train": [ONE], "test": [["cat/2.jpg", -1, "cat"]]}, "'test', entry 1 is invalid"),
        ({"train": [ONE], "test": [["cat/2.jpg", "0", "cat"]]}, "'test', entry 1 is invalid"),
        ({"train": [ONE], "test": [["cat/2.jpg", 1, " "]]}, "'test', entry 1 is invalid"),
        ({"train": [ONE], "test": ["cat/2.jpg"]}, "mixes two forms"),
        ({"train": ["emu/7.jpg"], "test": ["cat/3.jpg", "x/2.jpg"]},
         r"2 of 3 paths .* the first, cat/3\.jpg, matches none"),
        ({"train": ["emu/7.jpg"], "test": ["cat/1.jpg"]},
         r"1 of 2 paths .* the first, cat/1\.jpg, matches 2 images"),
        ({"train": ["emu/7.jpg"], "test": ["1.jpg"]}, r"1\.jpg, matches 3 images"),
        ({"train": ["emu/7.jpg"], "test": ["/"]}, "the first, /, matches none"),
        ({"train": ["emu/7.jpg"], "test": ["val/emu/7.jpg"]},
         r"names 1 images more than once, the first is /data/val/emu/7\.jpg"),
        ({"train": ["emu/7.jpg", "7.jpg"], "test": ["cat/2.jpg"]}, "more than once"),
        ({"train": [ONE], "test": [["cat/2.jpg", 0, "cat"]]}, "label 0 is both 'emu' and 'cat'"),
        ({"train": [ONE], "test": [["cat/2.jpg", 1, "emu"]]}, "'emu' has two labels, 0 and 1"),
        ({"train": [ONE], "test": [["cat/2.jpg", 5, "cat"]]}, "go up to 5, but 1 is missing"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_right_are_told(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        apply_split(build(), write(tmp_path, content))
    assert "split.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_split_cannot_be_applied_to_is_told(tmp_path: Path) -> None:
    data = ImageSet(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]))
    file = write(tmp_path, {"train": [ONE], "test": [["cat/2.jpg", 1, "cat"]]})
    with pytest.raises(UserError, match="does not consist of image files"):
        apply_split(Source(("a", "b"), TEMPLATES, data, data), file)
    source = build()
    prompts = tuple((f"a {name} in the zoo",) for name in source.class_names)
    of_classes = Source(source.class_names, prompts, source.train, source.test)
    with pytest.raises(UserError, match="differ from those that the prompts are written for"):
        apply_split(of_classes, file)
    with pytest.raises(UserError, match="No such file"):
        apply_split(source, tmp_path / "lost.json")


def test_a_split_of_terabytes_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    with file.open("wb") as opened:
        opened.truncate(1 << 40)  # a sparse file takes no room on the disk
    with pytest.raises(UserError, match="has 1,099,511,627,776 bytes"):
        apply_split(build(), file)


def test_a_test_set_alone_can_be_divided(tmp_path: Path) -> None:
    """Of sets that are only probes, such as ImageNet-A."""
    test = image_set({"/d/a/1.jpg": 0, "/d/b/2.jpg": 1})
    source = Source(("a", "b"), TEMPLATES, image_set({}), test)
    split = apply_split(source, write(tmp_path, {"train": ["a/1.jpg"], "test": ["b/2.jpg"]}))
    assert (rows(split.train), rows(split.test)) == ([("/d/a/1.jpg", 0)], [("/d/b/2.jpg", 1)])


@pytest.mark.parametrize("names", ["{c}/images/{i}.jpg", "{c}/{i}.jpg", "{c}/{c}_{i}.jpg"])
def test_many_paths_are_matched_in_seconds(names: str, tmp_path: Path) -> None:
    """File names that all classes share must not make it quadratic."""
    files = [names.format(c=f"n{c:08}", i=i) for c in range(1000) for i in range(20)]
    train = image_set({f"/data/{file}": n // 20 for n, file in enumerate(files)})
    source = Source(tuple(map(str, range(1000))), TEMPLATES, train, image_set({}))
    order = np.random.default_rng(0).permutation(len(files)).tolist()
    cut = len(files) // 2
    parts = [[files[n] for n in order[:cut]], [files[n] for n in order[cut:]]]
    file = write(tmp_path, {"train": parts[0], "test": parts[1]})
    start = time.perf_counter()
    split = apply_split(source, file)
    assert time.perf_counter() - start < 5  # 0.2 s where nothing else runs
    assert split.train.labels.tolist() == [n // 20 for n in order[:cut]]
    assert [str(path) for path in split.test.images.paths] == [f"/data/{name}" for name in parts[1]]


def test_a_draw_takes_a_share_of_every_class() -> None:
    counts = (10, 2, 7, 40)
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    shuffled = np.random.default_rng(1).permutation(labels).tolist()
    data = image_set({f"/d/{n}.jpg": label for n, label in enumerate(shuffled)})
    train, test = split_by_class(data, 0.25, 5, "abcd")
    assert torch.bincount(test.labels).tolist() == [2, 1, 2, 10]
    assert sorted(rows(train) + rows(test)) == sorted(rows(data))
    draws, expected = np.random.RandomState(5), set()
    for label, taken in enumerate((2, 1, 2, 10)):
        members = [n for n, other in enumerate(shuffled) if other == label]
        expected |= {f"/d/{members[i]}.jpg" for i in draws.permutation(len(members))[:taken]}
    assert {path for path, _ in rows(test)} == expected
    everything = split_by_class(data, 0.99, 5, "abcd")[0]
    assert torch.bincount(everything.labels).tolist() == [1, 1, 1, 1]
    with pytest.raises(UserError, match="'b' has only 1 images"):
        split_by_class(image_set({"/1": 0, "/2": 0, "/3": 1}), 0.5, 0, "ab")


def test_images_that_an_official_split_leaves_out_can_be_named(tmp_path: Path) -> None:
    whole = build()
    left_out, kept = (whole.train.subset(torch.tensor(i)) for i in ([1], [0, 2]))
    lean = dataclasses.replace(whole, train=kept, spare=lambda: left_out)
    paths = [str(path) for path in whole.train.images.paths]
    tests = [str(path) for path in whole.test.images.paths]
    file = write(tmp_path, {"train": paths, "test": tests})
    assert rows(apply_split(lean, file).train) == rows(whole.train)
    with pytest.raises(UserError, match="1 of 6 paths"):
        apply_split(dataclasses.replace(lean, spare=None), file)
