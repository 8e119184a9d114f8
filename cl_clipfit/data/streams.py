"""Streams as Avalanche benchmarks. Here, and here alone, labels are put in order of arrival."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
from avalanche.benchmarks.utils import as_classification_dataset
from torch import Tensor
from torch.utils.data import Dataset

from cl_clipfit.data.orders import class_order, read_tasks, split_tasks
from cl_clipfit.data.source import (
    ImageSet,
    Source,
    Templates,
    few_shots,
    hold_out,
    limit_images,
)
from cl_clipfit.errors import UserError

_BLUR_SEED, _ONLINE_SEED = 11, 12  # draws of their own, the same for every seed of a run


@dataclass(frozen=True)
class Layout:
    """Which class arrives when. Labels count from 0 in order of arrival.

    Attributes:
        order: original label of each arrival label.
        task_classes: arrival labels of each task; in a stream of domains tasks share classes.
        task_names: names of the tasks; empty where they have none.
    """

    order: list[int]
    task_classes: list[list[int]]
    task_names: tuple[str, ...] = ()

    @cached_property
    def arrival(self) -> Tensor:
        """Return the arrival label of each original label, (K,)."""
        return torch.tensor(self.order).argsort()

    @cached_property
    def task_of_class(self) -> Tensor:
        """Return the first task of each arrival label, (K,)."""
        task_of = torch.empty(len(self.order), dtype=torch.long)
        for task, classes in reversed(list(enumerate(self.task_classes))):
            task_of[classes] = task
        return task_of


@dataclass(frozen=True)
class Scenario:
    """A stream of tasks. All labels are in order of arrival: task 1's classes come first.

    Attributes:
        name: name of the scenario.
        class_names: names in order of arrival; they may repeat.
        templates: prompt templates, of all classes or a tuple for each.
        class_order: original label of each arrival label.
        task_classes: arrival labels of each task.
        task_names: names of the tasks; empty where they have none.
        train: training images of all tasks.
        test: test images of all tasks; `test.tasks` says of which.
        experiences: indices into `train`, (n,), of each experience; several a task where online.
        experience_tasks: the task, from 0, of each experience.
        origin: hash of the data set, and what it came from.
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

    @property
    def trained_tasks(self) -> int:
        """How many tasks are trained; further ones are only tested."""
        return self.experience_tasks[-1] + 1

    @property
    def test_tasks(self) -> Tensor:
        """The task of each test image, from 0, (N,)."""
        assert self.test.tasks is not None
        return self.test.tasks

    @cached_property
    def train_samples(self) -> list[int]:
        """Number of training images of each task."""
        counts = [0] * len(self.task_classes)
        for index, task in zip(self.experiences, self.experience_tasks, strict=True):
            counts[task] += len(index)
        return counts

    @cached_property
    def test_samples(self) -> list[int]:
        """Number of test images of each task."""
        return torch.bincount(self.test_tasks, minlength=len(self.task_classes)).tolist()

    @cached_property
    def benchmark(self) -> Any:
        """An Avalanche benchmark with `train_stream` and `test_stream`, built when asked for.

        Experiences of one task say so as Avalanche's online streams do: `is_first_subexp`,
        `is_last_subexp`; `task_samples` is the number of images of their task.
        """
        whole_train, whole_test = as_avalanche(self.train), as_avalanche(self.test)
        train = [whole_train.subset(index.tolist()) for index in self.experiences]
        of_task = [
            (self.test_tasks == t).nonzero().flatten() for t in range(len(self.task_classes))
        ]
        test = [whole_test.subset(index.tolist()) for index in of_task if len(index)]
        benchmark = with_classes_timeline(benchmark_from_datasets(train=train, test=test))
        tasks = self.experience_tasks
        for at, experience in enumerate(benchmark.train_stream):
            experience.is_first_subexp = at == 0 or tasks[at - 1] != tasks[at]
            experience.is_last_subexp = at + 1 == len(tasks) or tasks[at + 1] != tasks[at]
            experience.task_samples = self.train_samples[tasks[at]]
            experience.task_classes = self._brought[tasks[at]]
        return benchmark

    @cached_property
    def _brought(self) -> list[list[int]]:
        """Return the classes of which each task brings images; where blurry, those of others."""
        return [
            self.train.labels[self._members(t)].unique().tolist() for t in range(self.trained_tasks)
        ]

    def _members(self, task: int) -> Tensor:
        """Return which training images a task brings, (n,)."""
        own = zip(self.experiences, self.experience_tasks, strict=True)
        return torch.cat([index for index, t in own if t == task])

    def of_task(self, task: int) -> Any:
        """Return the whole of a task, from 0, as one experience: its `dataset`."""
        return SimpleNamespace(dataset=as_avalanche(self.train.subset(self._members(task))))

    def with_images(self, train: Any, test: Any) -> "Scenario":
        """Return the same stream with other tensors in place of the images, features say."""
        return replace(
            self, train=replace(self.train, images=train), test=replace(self.test, images=test)
        )


class _Samples(Dataset):
    """(image, label) pairs over images that need not be a tensor."""

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


def make_layout(
    source: Source,
    *,
    tasks: int | None = None,
    order: str | None = None,
    base_classes: int | None = None,
    tasks_file: Path | None = None,
) -> Layout:
    """Decide which class arrives when; every class lands in a task.

    Args:
        source: the data set; the tasks that it has of its own come first.
        tasks: number of tasks, the one of the base classes among them; default 1.
        order: name or file of a class order, see `orders.class_order`; default natural.
        base_classes: classes of the first task; the others share the rest.
        tasks_file: YAML file that names each task's classes.

    Raises:
        UserError: options that contradict each other or the data, more tasks than classes.
    """
    if source.task_names:
        _refuse_with_own_tasks(source, tasks, order, base_classes, tasks_file)
        return _own_layout(source)
    names = source.class_names
    if tasks_file is not None:
        if base_classes is not None or order not in (None, "natural"):
            raise UserError(
                f"--tasks {tasks_file}: the file says which classes arrive when, leave"
                " --base-classes and --class-order out"
            )
        task_names, groups = read_tasks(tasks_file, names)
        starts = torch.tensor([0, *map(len, groups)]).cumsum(0).tolist()
        spans = [list(range(*span)) for span in pairwise(starts)]
        return Layout([label for group in groups for label in group], spans, tuple(task_names))
    arrival = class_order(order or "natural", len(names), names)
    return Layout(arrival, split_tasks(len(names), tasks or 1, base_classes))


def _refuse_with_own_tasks(source: Source, tasks: Any, order: Any, base: Any, file: Any) -> None:
    given = [
        option
        for option, value in (
            ("--base-classes", base),
            ("--tasks", file or (tasks not in (None, len(source.task_names)) and tasks)),
            ("--class-order", order not in (None, "natural") and order),
        )
        if value
    ]
    if given:
        raise UserError(
            f"{given[0]}: the data say which tasks there are ({len(source.task_names)}:"
            f" {', '.join(source.task_names[:12])}), leave the option out"
        )


def _own_layout(source: Source) -> Layout:
    """Arrange the tasks that the data have: classes by their first task, then by label."""
    members: list[set[int]] = [set() for _ in source.task_names]
    for data in (source.train, source.test):
        assert data.tasks is not None
        pairs = torch.stack([data.tasks, data.labels]).unique(dim=1)
        for task, label in pairs.T.tolist():
            members[task].add(label)
    order = list(dict.fromkeys(label for labels in members for label in sorted(labels)))
    order += [label for label in range(len(source.class_names)) if label not in set(order)]
    arrival = {label: new for new, label in enumerate(order)}
    return Layout(
        order, [sorted(arrival[label] for label in labels) for labels in members], source.task_names
    )


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
) -> Scenario:
    """Cut a data set into a stream, without touching global random state.

    Args:
        name: name of the scenario.
        source: the data set.
        tasks: as in `make_layout`.
        order: as in `make_layout`.
        layout: in place of `tasks` and `order`.
        shots: training images a class; default all.
        validation: share of the training images, held out by a fixed draw, that takes the place of
            the test images.
        limit: at most so many images a class, of training and test images alike.
        online: images of an experience; a task's training images arrive in so small ones, once.
        blurry: share of the training images of every class that arrive in other tasks, evenly
            (Bang et al. 2021, Rainbow Memory, "blurry-M"); test images stay where they are.
        templates: prompt templates; default those of the data set.
        seed: seed of the draw of `shots`.
        load: brings the chosen images into memory, and may leave out what cannot be read.

    Raises:
        UserError: more tasks than classes, too few images, a class without images.
    """
    layout = layout or make_layout(source, tasks=tasks, order=order)
    train, test = source.train, source.test
    trained = source.trained_tasks or len(layout.task_classes)
    if limit is not None:
        train, test = limit_images(train, limit), limit_images(test, limit)
    if validation is not None:
        train, test = hold_out(train, validation, source.class_names)
    if train.tasks is not None:
        train = train.subset(train.tasks < trained)
    if shots is not None:
        train = few_shots(train, shots, seed, source.class_names)
    train, names = _arrived(train, layout), [source.class_names[c] for c in layout.order]
    needed = {c for classes in layout.task_classes[:trained] for c in classes}
    _check_every_class(train.labels, names, "training", needed)
    train, test = load(train), load(_arrived(test, layout))
    _check_every_class(train.labels, names, "readable training", needed)
    _check_every_class(test.labels, names, "test", range(len(names)))
    if blurry is not None:
        train = replace(train, tasks=_blur(train, blurry, trained))
    experiences, of_task = _cut(_tasks(train), trained, online)
    own = [source.templates[label] for label in layout.order] if _per_class(source) else ()
    return Scenario(
        name=name,
        class_names=names,
        templates=tuple(templates or own or source.templates),  # type: ignore[arg-type]
        class_order=layout.order,
        task_classes=layout.task_classes,
        task_names=layout.task_names,
        train=train,
        test=test,
        experiences=experiences,
        experience_tasks=of_task,
        origin={**source.origin, "sha256": source.sha256},
    )


def _per_class(source: Source) -> bool:
    return bool(source.templates) and not isinstance(source.templates[0], str)


def _tasks(data: ImageSet) -> Tensor:
    assert data.tasks is not None
    return data.tasks


def _arrived(data: ImageSet, layout: Layout) -> ImageSet:
    """Give labels in order of arrival, and every image its task."""
    labels = layout.arrival[data.labels]
    tasks = layout.task_of_class[labels] if data.tasks is None else data.tasks
    return replace(data, labels=labels, tasks=tasks)


def _blur(train: ImageSet, share: float, tasks: int) -> Tensor:
    """Return the tasks of the images when a share of every class moves to other tasks."""
    if tasks < 2:
        raise UserError(f"--blurry {share}: one task has no others to share classes with")
    generator = torch.Generator().manual_seed(_BLUR_SEED)
    moved = _tasks(train).clone()
    for label in train.labels.unique().tolist():
        members = (train.labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        members = members[: round(share * len(members))]
        home = _tasks(train)[members]
        # The others in turn, from a drawn one on, so that every task gets its equal share.
        first = torch.randint(tasks - 1, (1,), generator=generator)
        steps = (torch.arange(len(members)) + first) % (tasks - 1) + 1
        moved[members] = (home + steps) % tasks
    if torch.equal(moved, _tasks(train)):
        raise UserError(f"--blurry {share}: no class has enough images for one of them to move")
    return moved


def _cut(of_image: Tensor, tasks: int, online: int | None) -> tuple[list[Tensor], list[int]]:
    """Return the images of each experience, and the task of each."""
    generator = torch.Generator().manual_seed(_ONLINE_SEED)
    experiences: list[Tensor] = []
    of_task: list[int] = []
    for task in range(tasks):
        members = (of_image == task).nonzero().flatten()
        if not len(members):
            raise UserError(f"task {task + 1} has no training images: ask for fewer tasks")
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
