"""Streams: no class lost, labels in order of arrival, no global random state touched."""

import dataclasses
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from cl_clipfit.config.text_files import has_control, read_class_names
from cl_clipfit.data.composed import base_and_novel, one_after_the_other
from cl_clipfit.data.layout import make_layout
from cl_clipfit.data.orders import class_order, split_tasks
from cl_clipfit.data.source import ImageSet, Source, few_shots
from cl_clipfit.data.streams import Scenario, build_scenario
from cl_clipfit.errors import UserError
from tests.support.tiny import build_source


@pytest.mark.parametrize(("classes", "tasks"), [(10, 3), (7, 7), (100, 10), (5, 1), (11, 4)])
def test_every_class_lands_in_exactly_one_task(classes: int, tasks: int) -> None:
    parts = split_tasks(classes, tasks)
    assert [c for part in parts for c in part] == list(range(classes))
    assert len(parts) == tasks
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_pycil_order_is_the_published_one() -> None:
    assert class_order("pycil-1993", 100)[:10] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]
    assert class_order("seed:1993", 100) == class_order("pycil-1993", 100)


@pytest.mark.parametrize("seed", range(20))
def test_tasks_partition_the_data_and_labels_follow_arrival(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 12))
    tasks = int(rng.integers(1, classes + 1))
    source = build_source(classes, per_class=int(rng.integers(1, 6)), seed=seed)
    scenario = build_scenario("s", source, tasks=tasks, order=f"seed:{seed}")
    assert sorted(scenario.class_order) == list(range(classes))
    collected = []
    for experience, own in zip(scenario.benchmark.train_stream, scenario.task_classes, strict=True):
        assert sorted(experience.classes_in_this_experience) == own
        for image, label in experience.dataset:
            original = scenario.class_order[int(label)]
            assert scenario.class_names[int(label)] == source.class_names[original]
            collected.append((original, image.numpy().tobytes()))
    expected = [
        (int(label), image.numpy().tobytes())
        for image, label in zip(source.train.images, source.train.labels, strict=True)
    ]
    assert sorted(collected) == sorted(expected)


def test_building_a_stream_touches_no_global_random_state(source: Source) -> None:
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    build_scenario("s", source, tasks=3, order="seed:5", shots=2, seed=7)
    after = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    assert torch.equal(before[0], after[0])
    assert (before[1] == after[1]).all()
    assert before[2] == after[2]


def test_shots_are_balanced_and_depend_on_the_seed(source: Source) -> None:
    first, again, other = (
        build_scenario("s", source, tasks=2, shots=3, seed=seed) for seed in (1, 1, 2)
    )
    images = [torch.stack([x for e in s.benchmark.train_stream for x, _ in e.dataset])
              for s in (first, again, other)]  # fmt: skip
    assert first.train_samples == [9, 9]
    assert first.test_samples == [24, 24]
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_what_cannot_be_cut_is_refused(source: Source) -> None:
    with pytest.raises(UserError, match="only 6 classes"):
        build_scenario("s", source, tasks=7)
    with pytest.raises(UserError, match="only 8 training images"):
        build_scenario("s", source, tasks=2, shots=9)
    with pytest.raises(UserError, match="Did you mean 'natural'"):
        build_scenario("s", source, tasks=2, order="naturel")
    empty = Source((*source.class_names, "ghost"), source.templates, source.train, source.test)
    with pytest.raises(UserError, match="no training images for: ghost"):
        build_scenario("s", empty, tasks=2)


def test_images_must_be_uint8_rgb() -> None:
    with pytest.raises(ValueError, match="uint8"):
        ImageSet(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.long))
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    for labels in (torch.zeros(3, dtype=torch.long), torch.zeros(2, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="int64"):
            ImageSet(images, labels)


@pytest.mark.parametrize("labels", [[-1, 0], [1, 2]])
def test_labels_must_have_names(labels: list[int]) -> None:
    data = ImageSet(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor(labels))
    with pytest.raises(ValueError, match="must be 0 to 1"):
        Source(("a", "b"), ("{}",), data, data)


def test_validation_images_come_from_training_and_leave_it(source: Source) -> None:
    whole = build_scenario("s", source, tasks=2)
    one, two = (build_scenario("s", source, tasks=2, validation=0.25, seed=s) for s in (0, 1))
    assert torch.equal(one.test.images, two.test.images)  # a fixed draw, whatever the seed
    assert one.test_samples == [6, 6]
    assert one.train_samples == [18, 18]
    assert torch.bincount(one.test.labels).tolist() == [2] * 6
    held = {image.numpy().tobytes() for image in one.test.images}
    trained = {x.numpy().tobytes() for task in one.benchmark.train_stream for x, *_ in task.dataset}
    everything = {image.numpy().tobytes() for image in source.train.images}
    assert held | trained == everything
    assert not held & trained
    assert sum(whole.train_samples) == len(trained) + len(held)
    with pytest.raises(UserError, match="has only one training image"):
        build_scenario("s", few(source, 1), tasks=2, validation=0.5)


def few(source: Source, shots: int) -> Source:
    return dataclasses.replace(source, train=few_shots(source.train, shots, 0, source.class_names))


def test_der_order_is_of_one_hundred_classes() -> None:
    order = class_order("der-cifar100", 100)
    assert sorted(order) == list(range(100))
    assert order[:4] == [87, 0, 52, 58]
    assert order[-3:] == [26, 35, 39]
    with pytest.raises(UserError, match="100 classes, not of 10"):
        class_order("der-cifar100", 10)


def test_templates_take_the_place_of_the_data_sets(source: Source) -> None:
    assert build_scenario("s", source, tasks=2).templates == ("a photo of a {}.",)
    assert build_scenario("s", source, tasks=2, templates=["{}!"]).templates == ("{}!",)


def draw(seed: int) -> tuple[np.random.Generator, Source, int]:
    """Return a generator, a source of random size and a possible number of tasks."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(3, 12))
    source = build_source(classes, per_class=int(rng.integers(4, 12)), seed=seed)
    return rng, source, int(rng.integers(2, classes + 1))


def brought(scenario: Scenario) -> list[list[tuple[int, bytes]]]:
    """Return what every task brings: arrival label and bytes of each training image."""
    tasks: list[list[tuple[int, bytes]]] = [[] for _ in scenario.task_classes]
    for experience, task in zip(
        scenario.benchmark.train_stream, scenario.experience_tasks, strict=True
    ):
        tasks[task] += [(int(y), x.numpy().tobytes()) for x, y, *_ in experience.dataset]
    return tasks


@pytest.mark.parametrize("seed", range(10))
def test_online_brings_every_image_once_in_small_experiences(seed: int) -> None:
    rng, source, tasks = draw(seed)
    size = int(rng.integers(1, 9))
    plain = build_scenario("s", source, tasks=tasks)
    online = build_scenario("s", source, tasks=tasks, online=size)
    assert [sorted(task) for task in brought(online)] == [sorted(t) for t in brought(plain)]
    lengths = [len(experience.dataset) for experience in online.benchmark.train_stream]
    assert max(lengths) <= size
    assert len(lengths) == sum(-(-n // size) for n in plain.train_samples)
    assert online.train_samples == plain.train_samples
    first = [e.is_first_subexp for e in online.benchmark.train_stream]
    last = [e.is_last_subexp for e in online.benchmark.train_stream]
    assert (sum(first), sum(last)) == (tasks, tasks)
    for e, task in zip(online.benchmark.train_stream, online.experience_tasks, strict=True):
        assert e.task_classes == online.task_classes[task]


@pytest.mark.parametrize("seed", range(10))
def test_blurry_moves_the_share_of_every_class_evenly_and_loses_nothing(seed: int) -> None:
    rng, source, tasks = draw(seed)
    share = float(rng.uniform(0.05, 0.9))
    plain = build_scenario("s", source, tasks=tasks)
    blurred = build_scenario("s", source, tasks=tasks, blurry=share)
    flat = [sorted(x for task in brought(s) for x in task) for s in (plain, blurred)]
    assert flat[0] == flat[1]
    per_class = len(source.train) // len(source.class_names)
    for home, classes in enumerate(blurred.task_classes):
        for label in classes:
            counts = [sum(y == label for y, _ in task) for task in brought(blurred)]
            stayed = counts.pop(home)
            assert stayed == per_class - round(share * per_class)
            assert max(counts) - min(counts) <= 1
    assert torch.equal(plain.test_tasks, blurred.test_tasks)
    for experience in blurred.benchmark.train_stream:
        assert experience.task_classes == sorted({int(y) for _, y, *_ in experience.dataset})


def test_a_single_task_cannot_be_blurred(source: Source) -> None:
    with pytest.raises(
        UserError, match=r"--blurry 0\.5: a stream of one task has no other task to mix with"
    ):
        build_scenario("s", source, tasks=1, blurry=0.5)


@pytest.mark.parametrize(("classes", "base", "tasks"), [(100, 50, 6), (20, 11, 4), (7, 7, 1)])
def test_base_classes_come_first_and_tasks_count_them(classes: int, base: int, tasks: int) -> None:
    source = build_source(classes, per_class=1)
    layout = make_layout(source, tasks=tasks, base_classes=base, order="seed:3")
    scenario = build_scenario("s", source, layout=layout)
    expected = np.random.RandomState(3).permutation(classes).tolist()
    assert scenario.class_order == expected
    sizes = [len(task) for task in scenario.task_classes]
    assert (sizes[0], len(sizes), sum(sizes)) == (base, tasks, classes)
    assert max(sizes[1:], default=0) - min(sizes[1:], default=0) <= 1


def test_a_limit_holds_for_training_and_test_images(source: Source) -> None:
    limited = build_scenario("s", source, tasks=2, limit=3)
    assert torch.bincount(limited.train.labels).tolist() == [3] * 6
    assert torch.bincount(limited.test.labels).tolist() == [3] * 6
    assert build_scenario("s", source, tasks=2, limit=99).train_samples == [24, 24]


def test_shots_are_the_same_images_whatever_the_class_order(source: Source) -> None:
    found = [
        sorted(x for task in brought(build_scenario("s", source, tasks=2, order=order, shots=2))
               for _, x in task)
        for order in ("natural", "seed:5")
    ]  # fmt: skip
    assert found[0] == found[1]


def test_a_file_says_which_classes_arrive_when(tmp_path: Path, source: Source) -> None:
    file = tmp_path / "tasks.yaml"
    file.write_text("warm: [colour 4, colour 1]\ncold: [0, 5, colour 2, colour 3]\n")
    layout = make_layout(source, tasks_file=file)
    assert layout.task_names == ("warm", "cold")
    assert layout.order == [4, 1, 0, 5, 2, 3]
    assert layout.task_classes == [[0, 1], [2, 3, 4, 5]]
    with pytest.raises(UserError, match="so leave out --base-classes and --class-order"):
        make_layout(source, tasks_file=file, order="seed:1")


def with_domains(source: Source, domains: int) -> Source:
    """Deal the images of every class out to domains, in turn."""

    def dealt(data: ImageSet) -> ImageSet:
        return dataclasses.replace(data, tasks=torch.arange(len(data)) % domains)

    names = tuple(f"domain {d}" for d in range(domains))
    changed = {"train": dealt(source.train), "test": dealt(source.test)}
    return dataclasses.replace(source, task_names=names, **changed)


def test_tasks_of_the_data_share_classes_and_split_the_images(source: Source) -> None:
    scenario = build_scenario("s", with_domains(source, 4))
    assert scenario.task_classes == [list(range(6))] * 4
    assert scenario.train_samples == scenario.test_samples == [12] * 4
    tasks = brought(scenario)
    assert len({image for task in tasks for _, image in task}) == 48
    few = build_scenario("s", with_domains(source, 4), shots=1)
    assert few.train_samples == [6] * 4  # a shot of every class in every domain
    for options in ({"tasks": 3}, {"order": "seed:1"}):
        with pytest.raises(UserError, match="the data set defines its tasks"):
            build_scenario("s", with_domains(source, 4), **options)


def test_labels_and_tasks_of_the_data_go_together(source: Source) -> None:
    dealt = with_domains(source, 2)
    with pytest.raises(ValueError, match="go together"):
        dataclasses.replace(dealt, task_names=())
    with pytest.raises(ValueError, match="must be 0 to 0"):
        dataclasses.replace(dealt, task_names=("only",))


def test_base_and_novel_classes_are_halves_and_one_is_trained() -> None:
    source = build_source(7, per_class=3)
    scenario = build_scenario("s", base_and_novel(source), shots=2)
    assert scenario.task_names == ("base", "novel")
    assert scenario.task_classes == [[0, 1, 2, 3], [4, 5, 6]]  # CoOp: the larger half is base
    assert (scenario.trained_tasks, scenario.train_samples) == (1, [8, 0])
    assert scenario.test_samples == [12, 9]


def test_data_sets_one_after_the_other_keep_names_templates_and_images() -> None:
    first, second = build_source(3, per_class=2), build_source(2, per_class=4, seed=5)
    second = dataclasses.replace(second, templates=("a drawing of {}.",))
    joined = one_after_the_other({"b": second, "a": first})
    scenario = build_scenario("s", joined)
    assert scenario.task_names == ("b", "a")
    assert scenario.task_classes == [[0, 1], [2, 3, 4]]
    assert scenario.class_names == [*second.class_names, *first.class_names]  # names may repeat
    assert scenario.templates == (("a drawing of {}.",),) * 2 + (("a photo of a {}.",),) * 3
    images = [x for task in brought(scenario) for _, x in task]
    expected = [*second.train.images, *first.train.images]
    assert images == [image.numpy().tobytes() for image in expected]
    with pytest.raises(UserError, match="cannot be joined"):
        one_after_the_other({"x": joined})


def test_names_are_taken_from_a_file(tmp_path: Path) -> None:
    names = ("n01", "n02", "n03")
    lines, mapping = tmp_path / "names.txt", tmp_path / "names.yaml"
    lines.write_text("\ufeffcat\n dog \r\nno\n", encoding="utf-8", newline="")
    mapping.write_text("n02: no\nn03: 'on'\n")
    assert read_class_names(lines, names) == ("cat", "dog", "no")
    assert read_class_names(mapping, names) == ("n01", "no", "on")  # no YAML booleans
    assert has_control("a\u202e")  # would turn the rest of a line around
    assert not has_control("\u0915\u094d\u200d\u0937")  # joined letters of Hindi
    table = tmp_path / "names.json"
    table.write_text('{\n\t"n02": "\\ud83d\\ude00 face"}')
    assert read_class_names(table, names) == ("n01", "\U0001f600 face", "n03")
    for text, file, message in (
        ('{"n01": 1}', table, "expected lines"),
        ('{"n01": "a", "n01": "b"}', table, "'n01' is named twice"),
        ("[1", table, "not valid JSON"),
        ("cat\ndog", lines, "2 names, the data 3 classes"),
        ("cat\n\ndog", lines, "the name of class 1 is empty"),
        ("cat\nd\x00g\nowl", lines, "the name of class 1 is empty or unreadable"),
        ("n01: x\nn01: y", mapping, "'n01' is named twice"),
        ("[" * 20_000, mapping, "not valid YAML"),
        ("n04: x", mapping, "no class is called 'n04'. Did you mean"),
        ("[a, b]", mapping, "expected lines 'old name: new name'"),
        ("n01: [", mapping, "not valid YAML"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            read_class_names(file, names)


@pytest.mark.parametrize("ending", ["YML", "YAML", "Json", "JSON"])
def test_a_mapping_is_one_whatever_the_case_of_its_ending(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"NAMES.{ending}"
    pairs = {"ash": "ash tree", "oak": "oak tree"}
    file.write_text(
        json.dumps(pairs, indent=1) if "J" in ending else "ash: ash tree\noak: oak tree"
    )
    assert read_class_names(file, ("ash", "oak")) == ("ash tree", "oak tree")


@pytest.mark.parametrize(
    ("lines", "form"),
    [
        (("ash: ash tree", "oak: oak tree"), "'old name: new name'"),
        (("0, ash", "1, oak"), "'number, name'"),
        (("1 ash", "2 oak"), "'number, name'"),
        (("1. ash", "2. oak"), "'number, name'"),
        (("ash,0", "oak,1"), "'name, number'"),
        (("ash\t1", "oak\t2"), "'name, number'"),
        (("- ash", "- oak"), "'- name', a list"),
        (('"ash",', '"oak"'), "in quotes"),
        (("ash tree", "oak: tree"), ""),
        (("5 cent", "10 cent"), ""),
        (("class 0", "class 1"), ""),
        (("0", "1"), ""),
        (("Star Wars: Episode 1", "Dune"), ""),
        (("Dragon's", "'twas"), ""),
    ],
)
def test_lines_that_are_not_names_alone_are_questioned(
    tmp_path: Path, lines: tuple[str, str], form: str
) -> None:
    file = tmp_path / "names.txt"
    file.write_text("\n".join(lines))
    if not form:
        assert read_class_names(file, ("a", "b")) == lines
        return
    with pytest.raises(UserError, match=f"every line reads .*{re.escape(form)}.*ends in .yaml"):
        read_class_names(file, ("a", "b"))
