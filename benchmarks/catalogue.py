"""Every strategy in one Markdown table: what it trains and what it keeps of old tasks.

    python -m benchmarks.catalogue > docs/strategies.md

Parameters are counted on an untrained ViT-B/16 with ten classes, with each method's defaults.
"""

import argparse
from collections.abc import Sequence

import torch

from cl_clipfit import (
    CLIPStrategy,
    ImageSet,
    Recipe,
    Source,
    build_scenario,
    create_classifier,
)
from cl_clipfit.commands.catalogue import GROUPS
from cl_clipfit.registry import Registry

CLASSES = tuple(f"class {number}" for number in range(10))
TOWERS = {(): "neither", ("image",): "image", ("text",): "text", ("image", "text"): "both"}
HEAD = """# Strategies

Made by `python -m benchmarks.catalogue`. Parameters: numbers that the optimiser changes, with the
defaults of the method, on ViT-B/16 and ten classes; the mini CLIP has fewer. Towers: those that the
method changes or looks into; for methods without the image tower, images are encoded once. Old
images: what a method uses of the images of earlier tasks. `run.py list strategies` says what each
one is, `run.py info NAME` its options, recipes and paper.
"""

NOT_INCLUDED = """## Not included, and why

- PromptKD (Li et al. 2024, CVPR), a host of MERGETUNE's paper: its student has prompts within the
  image tower and is distilled, on unlabelled images of all classes, from a ViT-L/14 that PromptSRC
  has tuned on the same data; a stream shows no images of later classes, and such a teacher would be
  a second run with a second model.
- BOFA (Li et al. 2025, arXiv 2511.11421): the paper was read as an abstract alone, and its code, in
  C3Box, not at all, so that a file would be a guess; its numbers are disputed besides: with the
  defaults that C3Box ships, a user measured 1.8 % on CIFAR-100 (issue 2).
- MoE-Adapters with a router per task, frozen experts and DDAS, as its paper uses on streams of data
  sets: DDAS needs an AlexNet and decides for a whole batch of test images of one data set;
  `moe-adapters` is the form that its authors released for class-incremental streams.
"""


def make(name: str, registry: Registry, model: str) -> CLIPStrategy:
    """Return a strategy with its defaults, over its default base, on an untrained model."""
    entry, cls = registry.get("strategies", name), registry.trained_class(name)
    strategy: CLIPStrategy = cls(
        model=create_classifier(model), class_names=CLASSES, options=entry.options_class()(),
        recipe=Recipe(epochs=1),
    )  # fmt: skip
    if strategy.learning != "gradient":
        return strategy
    strategy.select()
    if not strategy.trained_numbers():  # those of factors and masks exist once a task is trained
        torch.manual_seed(0)
        images = torch.randint(0, 256, (len(CLASSES), 3, 32, 32), dtype=torch.uint8)
        data = ImageSet(images, torch.arange(len(CLASSES)))
        source = Source(CLASSES, ("a photo of a {}.",), data, data)
        (task,) = build_scenario("few", source, tasks=1, order="natural").benchmark.train_stream
        strategy.train(task, eval_streams=[])
    return strategy


def row(name: str, registry: Registry, model: str) -> str:
    """Return the row of a strategy."""
    entry, strategy = registry.get("strategies", name), make(name, registry, model)
    trains = strategy.learning == "gradient"
    parameters = f"{strategy.trained_numbers():,}" if trains else "0"
    old = str(entry.about.get("EXEMPLARS", "no"))
    if old in entry.options_class().model_fields:  # the option that says how many
        old = f"`{old}` images"
    elif old not in ("no", "features", "all"):
        old = "as its options say"
    cells = (f"`{name}`", parameters, TOWERS[strategy.towers], str(entry.about["NEEDS"]), old)
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="ViT-B-16:random")
    parser.add_argument("--strategies", nargs="+", help="default: all")
    given = parser.parse_args(arguments)
    registry = Registry()
    groups: dict[str, list[str]] = {}
    for entry in registry.entries("strategies"):
        if not given.strategies or entry.name in given.strategies:
            groups.setdefault(str(entry.about["GROUP"]), []).append(entry.name)
    print(HEAD)
    for group in [name for name in GROUPS if name in groups]:
        print(f"## {group.capitalize()}\n")
        print("| strategy | parameters | towers | keeps of old tasks | old images |")
        print("| --- | ---: | --- | --- | --- |")
        for name in groups[group]:
            print(row(name, registry, given.model))
        print()
    if not given.strategies:
        print(NOT_INCLUDED, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
