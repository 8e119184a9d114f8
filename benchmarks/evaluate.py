"""Time a row of the accuracy tables: open_clip's own forward pass, and ours in fp32 and bf16.

    python -m benchmarks.evaluate --model ViT-B-16 --images 64 --classes 100 --json

Untrained weights and drawn images: they do not change what a row costs. The ways take turns within
one process. Also counted: how often a row of three tables and two probes encodes an image.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import timing
from cl_clipfit.clip import CLIPClassifier, create_classifier
from cl_clipfit.data.source import ImageSet, Source
from cl_clipfit.data.streams import Scenario
from cl_clipfit.evaluation.scoreboard import Scoreboard
from cl_clipfit.evaluation.scoring import Scorer
from cl_clipfit.training.strategy import CLIPStrategy

WAYS = ("stock", "ours_fp32", "ours_bf16")
RATIOS = (("ours_fp32", "stock"), ("ours_bf16", "stock"))
PROBES, PROBE_CLASSES = 2, 2
TASKS = 2


def draw(count: int, classes: int, size: Sequence[int]) -> ImageSet:
    """Return images uint8 (count, 3, *size), and as labels the classes in turn."""
    images = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % classes)


def make_stream(images: int, classes: int, size: Sequence[int]) -> Scenario:
    """Return a stream of drawn images; nothing of it is trained on."""
    test = draw(images, classes, size)
    test = replace(test, tasks=test.labels * TASKS // classes)
    tasks = [[c for c in range(classes) if c * TASKS // classes == t] for t in range(TASKS)]
    return Scenario(
        "drawn", timing.class_names(classes), (timing.TEMPLATE,), list(range(classes)), tasks, (),
        test, test, [torch.arange(images)], [TASKS - 1], {},
    )  # fmt: skip


def make_probe(images: int, size: Sequence[int]) -> Source:
    """Return a data set of drawn images that is scored zero-shot."""
    data = draw(max(images, PROBE_CLASSES), PROBE_CLASSES, size)
    return Source(tuple(timing.class_names(PROBE_CLASSES)), (timing.TEMPLATE,), data, data)


def stock_row(model: CLIPClassifier, scenario: Scenario, batch_size: int) -> Callable[[], Tensor]:
    """Return a function that scores the test images by open_clip's own encoders."""
    clip, device = model.clip, model.logit_scale.device
    prompts = [timing.TEMPLATE.format(name) for name in scenario.class_names]

    @torch.no_grad()
    def row() -> Tensor:
        text = F.normalize(clip.encode_text(model.tokenizer(prompts).to(device)), dim=-1)
        batches = scenario.test.images.split(batch_size)
        pixels = (model.preprocess(batch.to(device)) for batch in batches)
        images = [clip.encode_image(batch, normalize=True) for batch in pixels]
        return (clip.logit_scale.exp() * torch.cat(images) @ text.T).cpu()

    return row


def our_row(
    model: CLIPClassifier, scenario: Scenario, probes: dict[str, Source], batch_size: int
) -> Callable[[], Tensor]:
    """Return a function that fills a row of every table, as a run does."""
    strategy = CLIPStrategy(
        model=model, class_names=scenario.class_names, templates=scenario.templates,
        device=model.logit_scale.device, eval_mb_size=batch_size,
    )  # fmt: skip

    def row() -> Tensor:
        ((_, scores),) = Scorer(strategy, scenario, probes, model).score({"": {}}, [TASKS])
        Scoreboard(scenario).add(scores)
        return scores.test

    return row


def encodings_per_image(
    model: CLIPClassifier, scenario: Scenario, probe: Source, batch_size: int
) -> float:
    """Return how often a row of three tables and two probes encodes an image."""
    probes = {f"probe {i + 1}": probe for i in range(PROBES)}
    encoded, preprocess = [0], model.preprocess

    def counting(images: Tensor) -> Tensor:
        encoded[0] += len(images)  # features are not preprocessed
        return preprocess(images)

    vars(model)["preprocess"] = counting
    try:
        our_row(model, scenario, probes, batch_size)()
    finally:
        vars(model)["preprocess"] = preprocess
    return encoded[0] / (len(scenario.test) + PROBES * len(probe.test))


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Time the ways in turns."""
    torch.manual_seed(0)
    name = timing.model_name(given.model)
    models = {p: create_classifier(name, given.device, p) for p in ("fp32", "bf16")}  # type: ignore[arg-type]
    size = models["fp32"].preprocess.size
    scenario, probe = make_stream(given.images, given.classes, size), make_probe(given.images, size)
    rows = [our_row(models[p], scenario, {}, given.batch_size) for p in ("fp32", "bf16")]
    rows.insert(0, stock_row(models["fp32"], scenario, given.batch_size))
    ways = dict(zip(WAYS, rows, strict=True))
    gap = (ways["ours_fp32"]() - ways["stock"]()).abs().max().item()
    seconds = timing.medians(timing.take_turns(ways, given.repeats, given.device))
    speeds = {way: given.images / seconds[way] for way in WAYS}
    return {
        "model": given.model, "images": given.images, "classes": given.classes,
        "batch_size": given.batch_size, "repeats": given.repeats,
        **timing.machine(given.device),
        "images_per_second": speeds,
        "speedup": timing.ratios(speeds, RATIOS),
        "largest_difference_of_logits_fp32": gap,
        "encodings_per_image": encodings_per_image(
            models["fp32"], scenario, probe, given.batch_size
        ),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    timing.add_options(parser, model="ViT-B-16", batch_size=256, repeats=3, device="cpu")
    parser.add_argument("--images", type=int, default=64, help="test images of the stream")
    parser.add_argument("--classes", type=int, default=100, help="classes of the stream, 2 or more")
    given = timing.parse(parser, arguments, "images")
    if given.classes < TASKS:
        parser.error(f"--classes must be {TASKS} or more")
    with timing.one_line(parser):
        found = measure(given)
    speed = found["images_per_second"]
    timing.show(found, given.json, [f"{way}: {speed[way]:.1f} images per second" for way in WAYS])


if __name__ == "__main__":
    main()
