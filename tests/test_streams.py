"""Streams: no class lost, labels in order of arrival, no global random state touched."""

import dataclasses
import random

import numpy as np
import pytest
import torch

from cl_clipfit.data.orders import class_order, split_tasks
from cl_clipfit.data.source import ImageSet, Source, few_shots
from cl_clipfit.data.streams import build_scenario
from cl_clipfit.errors import UserError
from tests.conftest import build_source


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
