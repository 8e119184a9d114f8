"""Your own images of several domains, one task per domain: DOMAIN/CLASS/*, with shared classes.

Alternatively DOMAIN/train/CLASS/* and DOMAIN/test/CLASS/*. The classes are those of all domains
together; a domain may lack some of them.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field

from cl_clipfit import DataRequest, ImageFiles, ImageSet, Source, UserError, nearest
from cl_clipfit.data.formats.folders import data_name, visible_folders
from cl_clipfit.data.formats.trees import TEST_PARTS, SplitOptions, Tree, read_tree

NAME = "domain-incremental"
CLASSES = "yours"
TASKS = "yours"
IMAGES = "yours"
DOWNLOAD = "by hand"
LICENCE = "yours"
MODEL = "ViT-B-16-quickgelu:openai"
CLASS_ORDER = "natural"
PROTOCOL = "domain-incremental"


class DomainOptions(SplitOptions):
    """The order of the domains, and how those without test images are split."""

    order: tuple[str, ...] = Field((), description="domains in order; default: by name")


def load(options: DomainOptions, request: DataRequest) -> Source:
    """List the images of all domains in the folder that `--data-dir` names."""
    root = request.data_dir
    if root is None or not root.is_dir():
        file = f"{root} is a file: " if root and root.is_file() else ""
        raise UserError(
            f"{NAME}: {file}--data-dir names a folder with DOMAIN/CLASS/*.jpg, or with"
            " DOMAIN/train/CLASS/*.jpg and DOMAIN/test/CLASS/*.jpg"
        )
    domains = _in_order(root, options.order)
    trees = [read_tree(root / domain, options) for domain in domains]
    names = sorted({name for tree in trees for name in tree.names})
    for domain, tree in zip(domains, trees, strict=True):
        if lacks := [name for name in names if name not in tree.names]:
            request.note(f"{domain} lacks {len(lacks)} of {len(names)} classes: {lacks[:5]}")
    drawn = any(tree.drawn for tree in trees)
    return Source(
        class_names=tuple(names),
        templates=("a photo of a {}.",),
        train=_join(names, trees, [tree.train for tree in trees]),
        test=_join(names, trees, [tree.test for tree in trees]),
        origin={
            "kind": "folder",
            "name": data_name(root),
            "verified": False,
            "drawn": drawn,
            **(options.model_dump(include={"test_share", "split_seed"}) if drawn else {}),
        },
        task_names=domains,
        warnings=tuple(text for tree in trees for text in tree.warnings),
    )


def _in_order(root: Path, order: tuple[str, ...]) -> tuple[str, ...]:
    """Return the domains; `order` must name each once."""
    there = tuple(folder.name for folder in visible_folders(root))
    for name in order:
        if name not in there:
            raise UserError(f"{NAME}.order: {root} has no domain '{name}'. {nearest(name, there)}")
    if order and sorted(order) != sorted(there):
        raise UserError(f"{NAME}.order must name each domain once: {', '.join(sorted(there))}")
    if not there:
        raise UserError(f"{root} holds no domains: expected {root.name}/DOMAIN/CLASS/*.jpg")
    if {name.lower() for name in there} <= {"train", *TEST_PARTS}:
        raise UserError(
            f"{root} holds {', '.join(there)}, not domains: use --scenario folder to read it"
        )
    return order or there


def _join(names: list[str], trees: Sequence[Tree], sets: Sequence[ImageSet]) -> ImageSet:
    """Concatenate the domains' images, with labels that count the classes of all domains."""
    labels, tasks = [], []
    for task, (tree, data) in enumerate(zip(trees, sets, strict=True)):
        labels.append(torch.tensor([names.index(name) for name in tree.names])[data.labels])
        tasks.append(torch.full_like(data.labels, task))
    files = tuple(path for data in sets for path in data.images.paths)
    return ImageSet(ImageFiles(files), torch.cat(labels), torch.cat(tasks))
