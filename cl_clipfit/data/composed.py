"""Data sets made from others: joined one after another, or cut into base and novel classes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from cl_clipfit.data.images.lazy import concatenate
from cl_clipfit.data.layout import Layout
from cl_clipfit.data.source import ImageSet, Source
from cl_clipfit.errors import UserError


def one_after_the_other(sources: Mapping[str, Source]) -> Source:
    """Join data sets into one, each a task of its own; each keeps its prompt templates.

    Labels continue from one data set to the next; names may repeat.

    Args:
        sources: data sets by name, in order.

    Raises:
        UserError: a data set consists of features, or already has tasks.
    """
    for name, source in sources.items():
        if source.text is not None or source.task_names:
            raise UserError(
                f"{name}: a data set of features, or one with tasks of its own, cannot be joined"
            )
    counts = [len(source.class_names) for source in sources.values()]
    starts = [sum(counts[:i]) for i in range(len(counts))]

    def joined(sets: list[ImageSet]) -> ImageSet:
        labels = [data.labels + start for data, start in zip(sets, starts, strict=True)]
        tasks = [torch.full_like(data.labels, task) for task, data in enumerate(sets)]
        images = concatenate([data.images for data in sets])
        return ImageSet(images, torch.cat(labels), torch.cat(tasks))

    members = list(sources.values())
    templates = [
        source.templates if isinstance(source.templates[0], str) else source.templates[label]
        for source in members
        for label in range(len(source.class_names))
    ]
    return Source(
        class_names=tuple(name for source in members for name in source.class_names),
        templates=tuple(templates),
        train=joined([source.train for source in members]),
        test=joined([source.test for source in members]),
        origin={
            "kind": "several data sets",
            "verified": all(bool(source.origin.get("verified", True)) for source in members),
            **{
                f"{n} {key}": v for n, source in sources.items() for key, v in source.origin.items()
            },
        },
        task_names=tuple(sources),
    )


def followed_by(source: Source, layout: Layout, name: str, more: Source) -> tuple[Source, Layout]:
    """Append a data set of new classes to a stream, as one more task.

    Labels of the stream stay as they are. Its prompt templates serve the new classes too, unless
    each class has its own: then those of the new data set do.

    Args:
        source: the data set of the stream.
        layout: its tasks.
        name: of the new data set.
        more: the new data set.

    Raises:
        UserError: a class is in the stream already, or the stream cannot be continued.
    """
    if source.text is not None:
        raise UserError(f"{name}: nothing can follow a stream that consists of features")
    if source.trained_tasks is not None:
        raise UserError(f"{name}: nothing can follow a stream that ends with tasks only tested")
    if known := [n for n in more.class_names if n in source.class_names]:
        raise UserError(f"{name}: the class '{known[0]}' is in the stream already: rename it")
    if name in source.task_names:
        raise UserError(f"{name}: a task of the stream has this name already: rename the folder")
    start, task = len(source.class_names), len(layout.task_classes)

    def joined(first: ImageSet, second: ImageSet) -> ImageSet:
        tasks = None
        if first.tasks is not None:
            tasks = torch.cat([first.tasks, torch.full_like(second.labels, task)])
        labels = torch.cat([first.labels, second.labels + start])
        return ImageSet(concatenate([first.images, second.images]), labels, tasks)

    labels = list(range(start, start + len(more.class_names)))
    templates: Any = source.templates
    if not isinstance(templates[0], str):
        templates = (*templates, *(tuple(more.templates) for _ in labels))
    names = [str(source.origin["then"])] if "then" in source.origin else []
    whole = replace(
        source, class_names=(*source.class_names, *more.class_names), templates=templates,
        train=joined(source.train, more.train), test=joined(source.test, more.test),
        origin={**source.origin, "then": ", ".join([*names, name])}, spare=None,
        task_names=(*source.task_names, name) if source.task_names else (),
        warnings=(*source.warnings, *more.warnings),
    )  # fmt: skip
    task_names = (*layout.task_names, name) if layout.task_names else ()
    return whole, Layout(
        [*layout.order, *labels], [*layout.task_classes, labels], task_names, (*layout.parts, task)
    )


def with_prompts(source: Source, prompts: Mapping[str, Sequence[str]]) -> Source:
    """Give single classes prompts of their own; the others keep the templates.

    Args:
        source: the data set.
        prompts: by class name: whole, or with one "{}" for the name.
    """
    names, templates = source.class_names, cast(Any, source.templates)
    shared = isinstance(templates[0], str)
    of_class = [templates if shared else templates[label] for label in range(len(names))]
    chosen = [tuple(prompts.get(n, t)) for n, t in zip(names, of_class, strict=True)]
    return replace(source, templates=tuple(chosen))


def base_and_novel(source: Source) -> Source:
    """Split a data set into base classes, which are trained, and novel ones, only tested.

    The first ceil(K / 2) classes in label order are the base classes.

    Raises:
        UserError: the data set has fewer than two classes, or already has tasks.
    """
    classes = len(source.class_names)
    if classes < 2 or source.task_names:
        raise UserError(
            "base-to-novel needs a data set with at least two classes and no tasks of its own"
        )
    base = (classes + 1) // 2

    def cut(data: ImageSet) -> ImageSet:
        return replace(data, tasks=(data.labels >= base).long())

    train = cut(source.train)
    return replace(
        source,
        train=train.subset(train.labels < base),
        test=cut(source.test),
        task_names=("base", "novel"),
        trained_tasks=1,
    )
