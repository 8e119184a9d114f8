"""Streams as Avalanche benchmarks. This is the only place where labels become arrival labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cl_clipfit.data.layout import Layout, make_layout
from cl_clipfit.data.source import ImageSet, Source, Templates, few_shots, hold_out, limit_images
from cl_clipfit.errors import UserError
from cl_clipfit.runtime.lean_imports import lean_imports

with lean_imports():
    from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
    from avalanche.benchmarks.utils import as_classification_dataset

_BLUR_SEED, _ONLINE_SEED = 11, 12  # of separate generators, independent of the run's seed


@dataclass(frozen=True)
class Scenario:
    """A stream of tasks. All labels are in order of arrival: task 1's classes come first.

    Attributes:
        name: name of the scenario.
        class_names: names in order of arrival; they may repeat.
        templates: prompt templates, for all classes or a tuple per class.
        class_order: original label of each arrival label.
        task_classes: arrival labels of each task.
        task_names: names of the tasks; empty if they have none.
        train: training images of all tasks.
        test: test images of all tasks; `test.tasks` gives the task of each.
        experiences: indices into `train`, (n,), of each experience; several per task if online.
        experience_tasks: the task, from 0, of each experience.
        origin: hash of the data set, and where it came from.
        warnings: of the data set.
        parts: as in `Layout`.
    """

    name: str
    class_names: list[str]
    templates: Templates
    class_order: list[int]
    task_classes: list[list[int]]
    task_names: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    experiences: list[Tensor]
    experience_tasks: list[int]
    origin: dict[str, Any]
    warnings: tuple[str, ...] = ()
    parts: tuple[int, ...] = ()

    @property
    def trained_tasks(self) -> int:
        """Return the number of trained tasks; further ones are only tested."""
        return self.experience_tasks[-1] + 1

    @property
    def test_tasks(self) -> Tensor:
        """Return the task of each test image, from 0, (N,)."""
        assert self.test.tasks is not None
        return self.test.tasks

    @cached_property
    def train_samples(self) -> list[int]:
        """Return the number of training images of each task."""
        counts = [0] * len(self.task_classes)
        for index, task in zip(self.experiences, self.experience_tasks, strict=True):
            counts[task] += len(index)
        return counts

    @cached_property
    def test_samples(self) -> list[int]:
        """Return the number of test images of each task."""
        return torch.bincount(self.test_tasks, minlength=len(self.task_classes)).tolist()

    @cached_property
    def benchmark(self) -> Any:
        """Return an Avalanche benchmark with `train_stream` and `test_stream`, built on first use.

        As in Avalanche's online streams, `is_first_subexp` and `is_last_subexp` mark the first and
        last experience of a task; `task_samples` is the number of images of the task, and
        `task_places` gives the positions of the experience's images among them.
        """
        whole_train, whole_test = as_avalanche(self.train), as_avalanche(self.test)
        train = [whole_train.subset(index.tolist()) for index in self.experiences]
        of_task = [
            (self.test_tasks == t).nonzero().flatten() for t in range(len(self.task_classes))
        ]
        test = [whole_test.subset(index.tolist()) for index in of_task if len(index)]
        benchmark = with_classes_timeline(benchmark_from_datasets(train=train, test=test))
        tasks = self.experience_tasks
        members = {task: self._members(task).sort().values for task in set(tasks)}
        for at, experience in enumerate(benchmark.train_stream):
            experience.is_first_subexp = at == 0 or tasks[at - 1] != tasks[at]
            experience.is_last_subexp = at + 1 == len(tasks) or tasks[at + 1] != tasks[at]
            experience.task_samples = self.train_samples[tasks[at]]
            experience.task_places = torch.searchsorted(members[tasks[at]], self.experiences[at])
            experience.task_classes = self.brought[tasks[at]]
        return benchmark

    @cached_property
    def brought(self) -> list[list[int]]:
        """Return the labels that occur in each trained task; in a blurry stream, of any task."""
        return [
            self.train.labels[self._members(t)].unique().tolist() for t in range(self.trained_tasks)
        ]

    def _members(self, task: int) -> Tensor:
        """Return the indices of a task's training images, (n,)."""
        experiences = zip(self.experiences, self.experience_tasks, strict=True)
        return torch.cat([index for index, t in experiences if t == task])

    def of_task(self, task: int) -> Any:
        """Return an object whose `dataset` holds all training images of a task, from 0."""
        return SimpleNamespace(dataset=as_avalanche(self.train.subset(self._members(task))))

    def with_images(self, train: Any, test: Any) -> "Scenario":
        """Return the same stream with the images replaced, for example by features."""
        return replace(
            self, train=replace(self.train, images=train), test=replace(self.test, images=test)
        )


class _Samples(Dataset):
    """Pairs of (image, label); the images need not be a tensor."""

    def __init__(self, data: ImageSet) -> None:
        self.images, self.labels = data.images, data.labels
        self.targets = data.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


def as_avalanche(data: ImageSet) -> Any:
    """Wrap images as an Avalanche classification dataset of (image, label)."""
    return as_classification_dataset(_Samples(data))


def build_scenario(
    name: str,
    source: Source,
    *,
    tasks: int | None = None,
    order: str | None = None,
    layout: Layout | None = None,
    shots: int | None = None,
    validation: float | None = None,
    limit: int | None = None,
    online: int | None = None,
    blurry: float | None = None,
    templates: Sequence[str] | None = None,
    seed: int = 0,
    load: Callable[[ImageSet], ImageSet] = lambda data: data,
    trains: bool = True,
) -> Scenario:
    """Split a data set into a stream, without touching the global RNG state.

    Args:
        name: name of the scenario.
        source: the data set.
        tasks: as in `make_layout`.
        order: as in `make_layout`.
        layout: replaces `tasks` and `order`.
        shots: training images per class; default all.
        validation: share of the training images, held out with a fixed seed, that replaces the
            test images.
        limit: maximum number of images per class, for both training and test images.
        online: images per experience; each task is seen once, in experiences of this size.
        blurry: share of each class's training images that is spread evenly over the other tasks
            (Bang et al. 2021, Rainbow Memory, "blurry-M"); test images stay in their task.
        templates: prompt templates; default those of the data set.
        seed: seed of the draw of `shots`.
        load: loads the chosen images into memory, and may leave out unreadable ones.
        trains: whether training images are needed; they are not loaded otherwise.

    Raises:
        UserError: there are more tasks than classes, too few images, or a class without images.
    """
    layout = layout or make_layout(source, tasks=tasks, order=order)
    trained = source.trained_tasks or len(layout.task_classes)
    train, test = _choose_images(source, trained, shots, validation, limit, seed)
    train, names = _arrived(train, layout), [source.class_names[c] for c in layout.order]
    needed = {c for classes in layout.task_classes[:trained] for c in classes}
    # Validation images come from the training images, so only from trained classes.
    tested = range(len(names)) if validation is None else needed
    train = _load_training(train, names, needed, load if trains else None)
    test = load(_arrived(test, layout))
    _check_every_class(test.labels, names, "test", tested)
    if blurry is not None:
        train = replace(train, tasks=_blur(train, blurry, trained))
    experiences, of_task = _cut(_tasks(train), trained, online)
    return Scenario(
        name=name, class_names=names, train=train, test=test, experiences=experiences,
        templates=tuple(templates or _ordered_templates(source, layout)),
        class_order=layout.order, task_classes=layout.task_classes, task_names=layout.task_names,
        experience_tasks=of_task, warnings=source.warnings, parts=layout.parts,
        origin={**source.origin, "sha256": source.sha256},
    )  # fmt: skip


def _load_training(
    train: ImageSet, names: list[str], needed: set[int],
    load: Callable[[ImageSet], ImageSet] | None,
) -> ImageSet:  # fmt: skip
    """Load the training images unless `load` is None; refuse a class without any."""
    _check_every_class(train.labels, names, "training", needed)
    if load is not None:
        train = load(train)
        _check_every_class(train.labels, names, "readable training", needed)
    return train


def _choose_images(
    source: Source, trained: int, shots: int | None, validation: float | None, limit: int | None,
    seed: int,
) -> tuple[ImageSet, ImageSet]:  # fmt: skip
    """Return the training images of the `trained` first tasks, and the test images."""
    train, test = source.train, source.test
    if limit is not None:
        train, test = limit_images(train, limit), limit_images(test, limit)
    if validation is not None:
        train, test = hold_out(train, validation, source.class_names)
    if train.tasks is not None:
        train = train.subset(train.tasks < trained)
    if shots is not None:
        train = few_shots(train, shots, seed, source.class_names)
    return train, test


def _ordered_templates(source: Source, layout: Layout) -> Sequence[Any]:
    """Return the templates of a data set; templates of each class are in order of arrival."""
    if not source.templates or isinstance(source.templates[0], str):
        return source.templates
    return [source.templates[label] for label in layout.order]


def _tasks(data: ImageSet) -> Tensor:
    assert data.tasks is not None
    return data.tasks


def _arrived(data: ImageSet, layout: Layout) -> ImageSet:
    """Convert labels to arrival labels, and assign every image to its task."""
    labels = layout.arrival[data.labels]
    tasks = layout.task_of_class[labels] if data.tasks is None else data.tasks
    return replace(data, labels=labels, tasks=tasks)


def _blur(train: ImageSet, share: float, tasks: int) -> Tensor:
    """Return the task of each image after moving a share of every class to other tasks."""
    if tasks < 2:
        raise UserError(f"--blurry {share}: a stream of one task has no other task to mix with")
    generator = torch.Generator().manual_seed(_BLUR_SEED)
    moved = _tasks(train).clone()
    for label in train.labels.unique().tolist():
        members = (train.labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        members = members[: round(share * len(members))]
        home = _tasks(train)[members]
        # Round-robin over the other tasks from a random start, so that all get equal shares.
        first = torch.randint(tasks - 1, (1,), generator=generator)
        steps = (torch.arange(len(members)) + first) % (tasks - 1) + 1
        moved[members] = (home + steps) % tasks
    if torch.equal(moved, _tasks(train)):
        raise UserError(f"--blurry {share}: no class has enough images to move even one of them")
    return moved


def _cut(of_image: Tensor, tasks: int, online: int | None) -> tuple[list[Tensor], list[int]]:
    """Return the images of each experience, and the task of each."""
    generator = torch.Generator().manual_seed(_ONLINE_SEED)
    experiences: list[Tensor] = []
    of_task: list[int] = []
    for task in range(tasks):
        members = (of_image == task).nonzero().flatten()
        if not len(members):
            raise UserError(f"task {task + 1} has no training images: reduce --tasks")
        parts = [members]
        if online is not None:
            drawn = members[torch.randperm(len(members), generator=generator)]
            parts = list(drawn.split(online))
        experiences += parts
        of_task += [task] * len(parts)
    return experiences, of_task


def _check_every_class(labels: Tensor, names: list[str], kind: str, needed: Any) -> None:
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    empty = [names[label] for label in sorted(needed) if counts[label] == 0]
    if empty:
        more = f" and {len(empty) - 10} more" if len(empty) > 10 else ""
        raise UserError(f"no {kind} images for: {', '.join(empty[:10])}{more}")
