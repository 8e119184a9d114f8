"""Time a batch whose images belong to different tasks: one mixed pass against a loop over tasks.

    python -m benchmarks.mixed_batch --model ViT-B-32 --tasks 10 --batch-size 32 --repeats 3 --json

Untrained weights and deltas drawn at random: neither changes what a pass costs. The three ways take
turns within one run, so that a machine that slows down slows all of them.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import timing
from cl_clipfit.bank.per_sample_norms import mixed_image_features
from cl_clipfit.clip import CLIPClassifier, create_classifier
from cl_clipfit.training.selection import select_layer_norms


def draw_deltas(model: CLIPClassifier, tasks: int) -> list[dict[str, Tensor]]:
    """Return values of the image tower's LayerNorms near those of the model, for each task."""
    norms = model.train_only(select_layer_norms(model.clip))
    model.requires_grad_(False)
    return [
        {n: p.detach() + 0.05 * torch.randn_like(p) for n, p in norms.items()} for _ in range(tasks)
    ]


@torch.no_grad()
def loop_over_tasks(
    model: CLIPClassifier, images: Tensor, choices: Tensor, deltas: Sequence[dict[str, Tensor]]
) -> Tensor:
    """Encode images (B, ...) to (B, d), loading the weights of one task after the other."""
    rows, parts = [], []
    with model.weights(deltas[0]):  # only to get the model's own weights back
        for task in choices.unique().tolist():
            model.load_values(deltas[task])
            rows.append((choices == task).nonzero().flatten())
            parts.append(model.image_features(images[rows[-1]]))
    return torch.cat(parts)[torch.cat(rows).argsort()]


@torch.no_grad()
def measure(name: str, tasks: int, batch_size: int, repeats: int, device: str) -> dict[str, Any]:
    """Time the mixed pass, the loop and a plain pass; see `main` for the arguments."""
    torch.manual_seed(0)
    model = create_classifier(timing.model_name(name), device)
    deltas, where = draw_deltas(model, tasks), torch.device(device)
    size = model.clip.visual.image_size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    images = torch.randn(batch_size, 3, height, width, device=where)
    choices = torch.arange(batch_size, device=where) % tasks
    ways: dict[str, Callable[[], Tensor]] = {
        "mixed": lambda: mixed_image_features(model, images, choices, deltas),
        "loop": lambda: loop_over_tasks(model, images, choices, deltas),
        "plain": lambda: model.image_features(images),
    }
    difference = float((ways["mixed"]() - ways["loop"]()).abs().max())
    medians = timing.medians(timing.take_turns(ways, repeats, device))
    return {
        "model": name,
        "tasks": tasks,
        "batch_size": batch_size,
        "repeats": repeats,
        "device": device,
        "threads": torch.get_num_threads(),
        "seconds": {way: round(value, 4) for way, value in medians.items()},
        "mixed_over_plain": round(medians["mixed"] / medians["plain"], 3),
        "loop_over_mixed": round(medians["loop"] / medians["mixed"], 3),
        "max_abs_difference": difference,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    timing.add_options(parser, model="ViT-B-32", batch_size=32, repeats=3, device="cpu")
    parser.add_argument("--tasks", type=int, default=10)
    given = timing.parse(parser, arguments, "tasks")
    with timing.one_line(parser):
        found = measure(given.model, given.tasks, given.batch_size, given.repeats, given.device)
    timing.show(found, given.json)


if __name__ == "__main__":
    main()
