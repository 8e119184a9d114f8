"""Time a training step of CLIPFit in the first tasks of a stream and in late ones.

    python -m benchmarks.growth --model ViT-B-32 --tasks 1 10 50 100 --batch-size 16 --json

Untrained weights and drawn images: they do not change what a step costs. The steps of all tasks and
settings take turns within one process, on one model that knows every class from the start.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks import timing
from cl_clipfit import CLIPClassifier, Recipe, create_classifier
from cl_clipfit.strategies.clipfit import ClipFit, ClipFitOptions
from cl_clipfit.training.optimization import make_optimizer, make_schedule

BOUNDED = ("task", "kd_prompts")  # settings whose cost should not grow
Step = Callable[[int], None]  # takes a step in the n-th task, from 1


def make_step(
    given: argparse.Namespace, model: CLIPClassifier, options: ClipFitOptions
) -> tuple[ClipFit, Step]:
    """Return CLIPFit, and a function that takes a step in a task as if trained before."""
    recipe = Recipe(optimizer="sgd", lr=1e-5)
    strategy: Any = ClipFit(model=model, recipe=recipe, options=options, device=given.device)
    strategy.is_training = True
    strategy.select()
    strategy.optimizer = make_optimizer(recipe, strategy.parameter_groups())
    strategy.scheduler = make_schedule(recipe, strategy.optimizer, 10**6)
    size, count = given.batch_size, given.classes_per_task
    images = torch.randn(size, 3, *model.preprocess.size, device=given.device)
    within = torch.arange(size, device=given.device) % count

    def step(task: int) -> None:
        strategy.seen_classes = list(range(task * count))
        strategy.task_classes = strategy.seen_classes[-count:]
        strategy.mbatch = [images, within + (task - 1) * count, torch.zeros_like(within)]
        strategy.optimizer.zero_grad()
        strategy.mb_output = strategy.forward()
        strategy.loss = strategy.criterion()
        strategy.backward()
        strategy.optimizer_step()

    return strategy, step


def prompts_in(model: CLIPClassifier, step: Callable[[], None]) -> int:
    """Take a step and return how many class prompts it encodes."""
    encode, counts = model.encode_prompts, []

    def counting(tokens: Sequence[torch.Tensor], normalize: bool = True) -> torch.Tensor:
        counts.append(len(tokens))
        return encode(tokens, normalize)

    vars(model)["encode_prompts"] = counting
    try:
        step()
    finally:
        del vars(model)["encode_prompts"]
    return sum(counts)


def summarise(prompts: dict[str, list[int]], seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Return what a prompt costs, and how much longer a step of the last task takes.

    Args:
        prompts: encoded in a step, for each setting and task.
        seconds: of a step, likewise.

    Returns:
        "milliseconds_per_prompt": slope of the least-squares line through the points of `seen`,
        None for a single task; "last_over_first"; "last_over_first_full": the same, from the first
        task on that encodes as many prompts as the last.
    """
    seen, several = prompts["seen"], len(prompts["seen"]) > 1
    slope = statistics.linear_regression(seen, seconds["seen"]).slope if several else None
    full = {key: prompts[key].index(prompts[key][-1]) for key in BOUNDED}
    return {
        "milliseconds_per_prompt": None if slope is None else 1e3 * slope,
        "last_over_first": {key: seconds[key][-1] / seconds[key][0] for key in BOUNDED},
        "last_over_first_full": {
            key: seconds[key][-1] / seconds[key][full[key]] for key in BOUNDED
        },
    }


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Time the steps of all settings and tasks in turns."""
    torch.manual_seed(0)
    model = create_classifier(timing.model_name(given.model), given.device, given.precision)
    model.add_classes(timing.class_names(max(given.tasks) * given.classes_per_task))
    settings = {
        "task": ClipFitOptions(kd_scope="task"),
        "seen": ClipFitOptions(kd_scope="seen"),
        "kd_prompts": ClipFitOptions(kd_scope="seen", kd_prompts=given.kd_prompts),
    }
    made = {key: make_step(given, model, options)[1] for key, options in settings.items()}
    steps = {key: [partial(step, task) for task in given.tasks] for key, step in made.items()}
    prompts = {key: [prompts_in(model, step) for step in own] for key, own in steps.items()}
    ways = {f"{key} {i}": steps[key][i] for i in range(len(given.tasks)) for key in steps}
    medians = timing.medians(timing.take_turns(ways, given.repeats, given.device))
    seconds = {key: [medians[f"{key} {i}"] for i in range(len(given.tasks))] for key in steps}
    options = (
        "model", "precision", "batch_size", "repeats", "tasks", "classes_per_task", "kd_prompts"
    )  # fmt: skip
    return {
        **{name: getattr(given, name) for name in options},
        **timing.machine(given.device),
        "prompts": prompts,
        "seconds": seconds,
        **summarise(prompts, seconds),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    timing.add_options(parser, model="ViT-B-32", batch_size=16, repeats=3, device="cpu")
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 10, 50, 100],
                        help="take a step in these, counted from 1")  # fmt: skip
    parser.add_argument("--classes-per-task", type=int, default=10)
    parser.add_argument("--kd-prompts", type=int, default=32, help="prompts drawn in a step")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    given = timing.parse(parser, arguments, "tasks", "classes_per_task", "kd_prompts")
    if given.tasks != sorted(set(given.tasks)):
        parser.error("--tasks must rise, as 1 10 50")
    with timing.one_line(parser):
        found = measure(given)
    timing.show(found, given.json)


if __name__ == "__main__":
    main()
