"""Class orders and tasks from names and files: every class exactly once, or one clear sentence."""

import json
import random
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import yaml

from cl_clipfit.data.orders import NAMED_ORDERS, class_order, read_tasks, split_tasks
from cl_clipfit.errors import UserError

NAMES = ("cat", "dog", "no", "on", "1e3", "crane", "crane", "black bear")
ANIMALS = ("cat", "dog", "horse", "bear")


def test_rapf_order_is_of_two_hundred_classes() -> None:
    order = class_order("rapf-imagenet-r", 200)
    assert sorted(order) == list(range(200))
    assert order[:10] == [29, 75, 18, 9, 62, 46, 133, 54, 89, 24]
    assert order[-3:] == [60, 151, 197]
    assert order[100:103] == [106, 10, 22]
    assert "rapf-imagenet-r" in NAMED_ORDERS
    with pytest.raises(UserError, match="an order of 200 classes, not of 100"):
        class_order("rapf-imagenet-r", 100)


# ---- files of orders -----------------------------------------------------------------------------


def write(path: Path, entries: list[str]) -> str:
    """Write a list in the format that the ending asks for."""
    if path.suffix == ".json":
        path.write_text(json.dumps([int(e) if e.isdigit() else e for e in entries]))
    elif path.suffix in (".yaml", ".yml"):
        path.write_text("".join(f"- {e}\n" for e in entries))
    else:
        path.write_text("\n".join(entries) + "\n\n", encoding="utf-8-sig")
    return str(path)


@pytest.mark.parametrize("name", ["order.txt", "order.json", "order.yaml", "order.yml", "order"])
@pytest.mark.parametrize("seed", range(5))
def test_an_order_comes_back_from_every_kind_of_file(tmp_path: Path, name: str, seed: int) -> None:
    rng = random.Random(seed)
    classes = rng.randint(1, 40)
    names = [f"class {chr(97 + i % 26)}{i}" for i in range(classes)]
    expected = rng.sample(range(classes), classes)
    entries = [names[c] if rng.random() < 0.5 else str(c) for c in expected]
    assert class_order(write(tmp_path / name, entries), classes, names) == expected
    labels = [str(c) for c in expected]
    assert class_order(write(tmp_path / name, labels), classes) == expected  # without names


@pytest.mark.parametrize("name", ["order.txt", "order.json", "order.yaml"])
def test_names_that_yaml_reads_as_values_stay_names(tmp_path: Path, name: str) -> None:
    entries = ["on", "no", "1e3", "6", "5", "black bear", "dog", "cat"]
    assert class_order(write(tmp_path / name, entries), 8, NAMES) == [3, 2, 4, 6, 5, 7, 1, 0]


def test_folders_with_numbers_for_names_are_named_by_these(tmp_path: Path) -> None:
    """Sorted as text, the folder 10 has label 1 and the folder 2 label 2."""
    file = write(tmp_path / "order.txt", ["10", "2", "1"])
    assert class_order(file, 3, ("1", "10", "2")) == [1, 2, 0]


@pytest.mark.parametrize("name", ["order.txt", "order.json", "order.yaml"])
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["cat", "dog", "horse"], "'bear' (label 3) is missing"),
        (["cat"], "'dog' (label 1) and 2 more are missing"),
        ([], "'cat' (label 0) and 3 more are missing"),
        (["cat", "dog", "hose", "bear"], "3: unknown class 'hose'. Did you mean 'horse'?"),
        (["cat", "dog", "horse", "4"], "4: unknown class '4'. Known: bear, cat, dog, horse."),
        (["cat", "dog", "horse", "-1"], "4: unknown class '-1'"),
        (["cat", "dog", "1", "bear"], "3: class '1' is repeated, it is already in "),
        (["cat", "dog", "horse", "bear", "cat"], "5: class 'cat' is repeated, it is already in "),
        (["cat", "dog", "horse", "bear", "emu"], "5: unknown class 'emu'"),
    ],
)
def test_what_is_no_order_of_all_classes(
    tmp_path: Path, name: str, entries: list[str], message: str
) -> None:
    file = write(tmp_path / name, entries)
    if name.endswith("yaml") and not entries:
        Path(file).write_text("[]")
    with pytest.raises(UserError) as caught:
        class_order(file, 4, ANIMALS)
    text = str(caught.value)
    assert text.startswith(f"--class-order {file}")
    assert message in text
    assert "\n" not in text


def test_names_that_repeat_need_labels(tmp_path: Path) -> None:
    file = write(tmp_path / "order.txt", ["cat", "crane"])
    with pytest.raises(UserError, match="line 2: 2 classes are called 'crane', use their label"):
        class_order(file, 8, NAMES)


def test_a_long_list_of_names_is_not_recited(tmp_path: Path) -> None:
    names = [f"class-{n}" for n in range(1000)]
    with pytest.raises(UserError, match=r"unknown class '§§'. Labels are 0 to 999.$"):
        class_order(write(tmp_path / "order.txt", ["§§"]), 1000, names)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"a": 1}', "must be a list"),
        ("a.json", b"[true, false]", "must be a list"),
        ("a.json", b"[1, [2]]", "must be a list"),
        ("a.json", b"[1,", "this is not valid JSON"),
        ("a.json", b"[" * 100_000, "this is not valid JSON"),
        ("a.yaml", b"a: 1", "must be a list"),
        ("a.yaml", b"", "must be a list"),
        ("a.yaml", b"- cat\n- [dog]", "line 2: expected a name or a label"),
        ("a.yaml", b"- cat\n-\n", "line 2: expected a name or a label"),
        ("a.yaml", b"- &a [*a]", "line 1: not valid YAML: an alias"),
        ("a.yaml", b"- cat\n\t- dog: {", "not valid YAML"),
        ("a.yaml", b"[" * 100_000, "not valid YAML"),
        ("a.yaml", b"- cat\x00", "not valid YAML"),
        ("a.txt", b"\xff\xfe\x00", "cannot be read as text"),
        ("a.txt", b"9" * 5000, "unknown class"),
    ],
)
def test_files_that_are_no_list(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        class_order(str(tmp_path / name), 4, ANIMALS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.txt", "missing.json", "missing.yml", "no/such"])
def test_a_file_that_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"--class-order .*{name}: there is no such file"):
        class_order(str(tmp_path / name), 4)


@pytest.mark.parametrize("name", ["seed:-1", f"seed:{2**32}", "seed:" + "9" * 5000, "seed:x"])
def test_seeds_out_of_range(name: str) -> None:
    with pytest.raises(UserError, match="N in seed:N must be from 0"):
        class_order(name, 4)


# ---- base classes --------------------------------------------------------------------------------


def test_base_classes_are_the_first_task() -> None:
    assert list(map(len, split_tasks(100, 6, base_classes=50))) == [50, 10, 10, 10, 10, 10]
    assert list(map(len, split_tasks(100, 5, base_classes=90))) == [90, 3, 3, 2, 2]
    assert split_tasks(7, 1, base_classes=7) == [list(range(7))]


@pytest.mark.parametrize("seed", range(30))
def test_base_classes_leave_no_class_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 300))
    base = int(rng.integers(1, classes))
    tasks = int(rng.integers(2, classes - base + 2))
    parts = split_tasks(classes, tasks, base)
    assert list(chain(*parts)) == list(range(classes))
    assert len(parts) == tasks
    assert len(parts[0]) == base
    sizes = list(map(len, parts[1:]))
    assert sizes == sorted(sizes, reverse=True)
    assert 1 <= sizes[0] <= sizes[-1] + 1


@pytest.mark.parametrize(
    ("tasks", "base", "message"),
    [
        (2, 10, "there are 10 classes, so none is left"),
        (2, 11, "there are 10 classes, so none is left"),
        (1, 5, "a single task takes all 10 classes"),
        (1, 11, "a single task takes all 10 classes"),
        (4, 8, "only 2 classes are left for the other 3 tasks"),
    ],
)
def test_base_classes_that_do_not_fit(tasks: int, base: int, message: str) -> None:
    with pytest.raises(UserError, match=f"--base-classes {base} with --tasks {tasks}: {message}"):
        split_tasks(10, tasks, base)


# ---- files of tasks ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_tasks_come_back_from_their_file(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    classes = rng.randint(1, 60)
    names = [f"{rng.choice(['no', 'yes', '#', 'Löwe: '])}{i}" for i in range(classes)]
    order = rng.sample(range(classes), classes)
    cuts = sorted(rng.sample(range(1, classes), rng.randint(0, min(8, classes - 1))))
    expected = [order[a:b] for a, b in zip([0, *cuts], [*cuts, classes], strict=True)]
    content = [[names[c] if rng.random() < 0.5 else c for c in task] for task in expected]
    titles = [f"part {t}" for t in range(len(expected))]
    named = rng.random() < 0.5
    document = dict(zip(titles, content, strict=True)) if named else content
    (tmp_path / "t.yaml").write_text(
        yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    found, tasks = read_tasks(tmp_path / "t.yaml", names)
    assert tasks == expected
    assert found == (titles if named else [f"task {t}" for t in range(1, len(expected) + 1)])
    assert sorted(chain(*tasks)) == list(range(classes))  # all of them, none twice


def test_nothing_in_a_file_of_tasks_is_a_truth_value_or_a_number(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text("yes: [no, on]\n010: [1e3, ~, 0x1]\n")
    names, tasks = read_tasks(file, ("on", "no", "~", "0x1", "1e3"))
    assert names == ["yes", "010"]
    assert tasks == [[1, 0], [4, 2, 3]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- [cat, dog]\n- [horse]", ": every class must be listed; 'bear' (label 3) is missing"),
        (
            "- [cat, dog]\n- [horse, bear, cat]",
            ", line 2: class 'cat' is repeated, it is already in line 1",
        ),
        (
            "a: [cat, dog]\nb: [horse, 3, bear]",
            ", line 2: class 'bear' is repeated, it is already in line 2",
        ),
        ("- [cat, dgo]\n- [horse, bear]", ", line 1: unknown class 'dgo'. Did you mean 'dog'?"),
        ("a: [cat, dog]\na: [horse, bear]", ": two tasks are called 'a'"),
        ("a: [cat, dog]\nb: []", ", line 2: 'b' must be a list of classes"),
        ("a: [cat, dog]\nb: horse", ", line 2: 'b' must be a list of classes"),
        ("- cat\n- dog", ", line 1: 'task 1' must be a list of classes"),
        ("a: [cat, [dog]]", ", line 1: expected a name or a label"),
        ("? [a]\n: [cat]", ", line 1: expected a name or a label"),
        ("{}", ": must be a list of lists of classes, or map task names to lists"),
        ("", ": must be a list of lists of classes, or map task names to lists"),
        ("cat", ": must be a list of lists of classes, or map task names to lists"),
        ("a: &x [cat, dog]\nb: *x", ", line 2: not valid YAML: an alias"),
        ("a: [cat\nb: ]]", ", line 2: not valid YAML"),
        ("--- [a]\n--- [b]", ", line 2: not valid YAML"),
    ],
)
def test_what_is_no_file_of_tasks(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        read_tasks(file, ANIMALS)
    assert str(caught.value).startswith(f"--tasks {file}{message}")
    assert "\n" not in str(caught.value)


def test_a_file_of_tasks_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_tasks(tmp_path / "t.yaml", ANIMALS)
    with pytest.raises(UserError, match="no such file"):
        read_tasks(tmp_path, ANIMALS)
