"""Data sets made from others: joined one after another, or cut into base and novel classes."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from cl_clipfit.data.images.lazy import concatenate
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
