"""Class-incremental streams as Avalanche benchmarks. Labels are remapped to arrival order here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
from avalanche.benchmarks.utils import as_classification_dataset
from torch import Tensor
from torch.utils.data import TensorDataset

from cl_clipfit.data.orders import class_order, split_tasks
from cl_clipfit.data.source import ImageSet, Source, few_shots, hold_out
from cl_clipfit.errors import UserError


@dataclass(frozen=True)
class Scenario:
    """A stream of tasks. All labels are in order of arrival: task 1's classes come first.

    Attributes:
        name: name of the scenario.
        class_names: names in order of arrival.
        templates: prompt templates.
        class_order: original label of each arrival label.
        task_classes: arrival labels of each task.
        benchmark: an Avalanche benchmark with `train_stream` and `test_stream`.
        test: all test images.
        train_samples: number of training images of each task.
        test_samples: number of test images of each task.
        origin: hash of the data set, and what it came from.
    """

    name: str
    class_names: list[str]
    templates: tuple[str, ...]
    class_order: list[int]
    task_classes: list[list[int]]
    benchmark: Any
    test: ImageSet
    train_samples: list[int]
    test_samples: list[int]
    origin: dict[str, Any]


def as_avalanche(data: ImageSet) -> Any:
    """Wrap images as an Avalanche classification dataset of (uint8 image, label)."""
    dataset = TensorDataset(data.images, data.labels)
    dataset.targets = data.labels.tolist()  # type: ignore[attr-defined]
    return as_classification_dataset(dataset)


def build_scenario(
    name: str,
    source: Source,
    *,
    tasks: int,
    order: str = "natural",
    shots: int | None = None,
    validation: float | None = None,
    templates: Sequence[str] | None = None,
    seed: int = 0,
) -> Scenario:
    """Cut a data set into a class-incremental stream, without touching global random state.

    Args:
        name: name of the scenario.
        source: the data set.
        tasks: number of tasks; every class lands in exactly one.
        order: name of a class order, see `orders.class_order`.
        shots: training images a class; default all.
        validation: share of the training images, held out by a fixed draw, that takes the place of
            the test images.
        templates: prompt templates; default those of the data set.
        seed: seed of the draw of `shots`.

    Raises:
        UserError: more tasks than classes, too few images, a class without images.
    """
    original = class_order(order, len(source.class_names))
    task_classes = split_tasks(len(original), tasks)
    train, test = source.train, source.test
    if validation is not None:
        train, test = hold_out(train, validation, source.class_names)
    if shots is not None:
        train = few_shots(train, shots, seed, source.class_names)
    arrival = torch.empty(len(original), dtype=torch.long)
    arrival[torch.tensor(original)] = torch.arange(len(original))
    train = ImageSet(train.images, arrival[train.labels])
    test = ImageSet(test.images, arrival[test.labels])
    names = [source.class_names[label] for label in original]
    _check_every_class(train.labels, names, "training")
    _check_every_class(test.labels, names, "test")
    train_tasks, test_tasks = _cut(train, task_classes), _cut(test, task_classes)
    benchmark = benchmark_from_datasets(train=train_tasks, test=test_tasks)
    return Scenario(
        name=name,
        class_names=names,
        templates=tuple(templates or source.templates),
        class_order=original,
        task_classes=task_classes,
        benchmark=with_classes_timeline(benchmark),
        test=test,
        train_samples=[len(task) for task in train_tasks],
        test_samples=[len(task) for task in test_tasks],
        origin={**source.origin, "sha256": source.sha256},
    )


def _cut(data: ImageSet, task_classes: list[list[int]]) -> list[Any]:
    """Return one dataset a task; they share the images."""
    whole = as_avalanche(data)
    members = [torch.isin(data.labels, torch.tensor(classes)) for classes in task_classes]
    return [whole.subset(mask.nonzero().flatten().tolist()) for mask in members]


def _check_every_class(labels: Tensor, names: list[str], kind: str) -> None:
    counts = torch.bincount(labels, minlength=len(names))
    empty = [name for name, count in zip(names, counts.tolist(), strict=True) if count == 0]
    if empty:
        raise UserError(f"no {kind} images for: {', '.join(empty[:10])}")
