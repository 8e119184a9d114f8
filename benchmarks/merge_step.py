"""Time a step of MERGETUNE's second stage against a step of its host, CLIPFit.

    python -m benchmarks.merge_step --model ViT-B-16 --classes 100 --batch-size 16 --json

Untrained weights: they do not change what a step costs. The two steps take turns within one
process; peak memory is that of two further processes, one for each kind of step.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks import timing
from cl_clipfit import Recipe, create_classifier
from cl_clipfit.methods.continued import Stage
from cl_clipfit.strategies.clipfit import ClipFit, ClipFitOptions
from cl_clipfit.strategies.mergetune import MergeTune, MergeTuneOptions
from cl_clipfit.training.optimization import make_optimizer, make_schedule


def build(arguments: argparse.Namespace) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return functions that take a step of the host, and one of the second stage in a task > 1."""
    torch.manual_seed(0)
    model = create_classifier(timing.model_name(arguments.model))
    strategy: Any = MergeTune.over(ClipFit)(
        model=model, class_names=[f"thing {i}" for i in range(arguments.classes)],
        recipe=Recipe(optimizer="sgd", lr=1e-3), host_options=ClipFitOptions(),
        options=MergeTuneOptions(alpha=arguments.alpha, landscape="off"),
    )  # fmt: skip
    classes = list(range(arguments.classes))
    strategy.task_classes, strategy.seen_classes, strategy.tasks_seen = classes, classes, 2
    strategy.is_training = True
    strategy.select()
    strategy.optimizer = make_optimizer(strategy.recipe, strategy.parameter_groups())
    strategy.scheduler = make_schedule(strategy.recipe, strategy.optimizer, 100)
    size = model.preprocess.size
    images = torch.randn(arguments.batch_size, 3, *size)
    labels = torch.arange(arguments.batch_size) % arguments.classes
    strategy.mbatch = [images, labels, torch.zeros_like(labels)]
    near = [
        {n: p.detach() + 0.01 * torch.randn_like(p) for n, p in strategy.selection.items()}
        for _ in range(2)
    ]
    stage = Stage(strategy.zero_shot_point(), *near)

    def step(second: bool) -> None:
        strategy.second_stage = stage if second else None
        strategy.optimizer.zero_grad()
        strategy.mb_output = strategy.forward()
        strategy.loss = strategy.criterion()
        strategy.backward()
        strategy.optimizer_step()

    return lambda: step(False), lambda: step(True)


def peak_bytes(arguments: argparse.Namespace, kind: str) -> int:
    """Return the peak resident memory of a process that takes steps of one kind."""
    options = []
    for option in ("model", "classes", "batch_size", "threads", "alpha"):
        options += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
    return timing.peak_of_child("benchmarks.merge_step", "--memory-of", kind, *options)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time both steps in turns."""
    # Memory first: a process that is started begins with the peak of the one that starts it.
    memory = {name: peak_bytes(arguments, name) for name in ("host", "second_stage")}
    steps = dict(zip(memory, build(arguments), strict=True))
    medians = timing.medians(timing.take_turns(steps, arguments.repeats))
    return {
        "model": arguments.model, "classes": arguments.classes,
        "batch_size": arguments.batch_size, "alpha": arguments.alpha,
        "threads": torch.get_num_threads(), "repeats": arguments.repeats,
        "seconds": medians, "peak_bytes": memory,
        "time_ratio": medians["second_stage"] / medians["host"],
        "memory_ratio": memory["second_stage"] / memory["host"],
    }  # fmt: skip


def main(given: Sequence[str] | None = None) -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    timing.add_options(parser, model="ViT-B-16", batch_size=16, repeats=3)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--alpha", default="uniform", help="points of the line")
    parser.add_argument("--memory-of", choices=["host", "second_stage"], help=argparse.SUPPRESS)
    arguments = timing.parse(parser, given, "classes")
    with timing.one_line(parser):
        if arguments.memory_of:
            step = build(arguments)[arguments.memory_of == "second_stage"]
            step()
            step()
            print(timing.peak_bytes())
            return
        result = measure(arguments)
    line = (
        f"a second-stage step takes {result['time_ratio']:.2f} times a step of the host and"
        f" {result['memory_ratio']:.2f} times its peak memory"
    )
    timing.show(result, arguments.json, [line])


if __name__ == "__main__":
    main()
