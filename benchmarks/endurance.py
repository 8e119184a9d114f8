"""Time and memory of each task in a long stream: do late ones cost more than early ones?

    python -m benchmarks.endurance --tasks 1000 --evaluate-every 100 --json

CLIPFit with `kd_scope=task` on a tiny untrained CLIP and drawn images, with a bank and checkpoints
as every run keeps them. What is evaluated on the way is not part of a task's time. Another stream
comes before it: Python's allocator is quicker as long as its heap is fresh, whatever the program.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg

from benchmarks import timing
from cl_clipfit import CLIPClassifier, Recipe, build_scenario
from cl_clipfit.bank.store import DeltaBank
from cl_clipfit.data.source import ImageSet, Source
from cl_clipfit.storage.checkpoints import Checkpoints
from cl_clipfit.strategies.clipfit import ClipFit, ClipFitOptions
from cl_clipfit.training.journal import Journal

CLASSES, TRAIN, TEST, SIZE = 2, 32, 4, 16  # of a task; images of a class, twice; pixels a side
CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 64, "head_width": 16, "patch_size": 4},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def tiny_model() -> CLIPClassifier:
    """Return an untrained CLIP whose steps take milliseconds."""
    torch.manual_seed(0)
    clip = open_clip.CLIP(**CONFIG)
    preprocess = {**PreprocessCfg().__dict__, "size": SIZE}
    open_clip.set_model_preprocess_cfg(clip, preprocess)
    return CLIPClassifier(clip, open_clip.SimpleTokenizer(context_length=16))


def drawn_source(classes: int) -> Source:
    """Return drawn images of so many classes."""
    generator = torch.Generator().manual_seed(0)

    def draw(images: int) -> ImageSet:
        count = classes * images
        pixels = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator)
        return ImageSet(pixels.to(torch.uint8), torch.arange(count) % classes)

    return Source(tuple(f"thing {i}" for i in range(classes)), ("a {}.",), draw(TRAIN), draw(TEST))


def resident_bytes() -> int:
    """Return what this process has in memory now; its peak where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return timing.peak_bytes()
    return pages * 4096


def accuracy_of(strategy: Any, test: ImageSet) -> float:
    """Return the accuracy in percent; nothing of the scores stays in memory."""
    right = strategy.score_all(test.images).argmax(1) == test.labels
    return 100 * float(right.float().mean())


def learn(tasks: int, given: argparse.Namespace) -> tuple[list[float], list[int], list[float]]:
    """Train so many tasks; return seconds and bytes in memory of each, and the accuracies."""
    source = drawn_source(tasks * CLASSES)
    scenario = build_scenario("drawn", source, tasks=tasks)
    recipe = Recipe(epochs=2, batch_size=16, lr=1e-4)
    strategy: Any = ClipFit(
        model=tiny_model(), class_names=source.class_names, recipe=recipe,
        options=ClipFitOptions(kd_scope="task", ce_scope="task"), device=given.device,
    )  # fmt: skip
    seconds, resident, accuracy = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        identity = {"architecture": "tiny", "pretrained": "random", "weights_sha256": "0"}
        bank = DeltaBank.create(Path(folder) / "bank", identity, "clipfit")
        journal = Journal(Checkpoints(Path(folder), print), strategy, scenario.task_classes)
        for number, experience in enumerate(scenario.benchmark.train_stream):
            started = time.perf_counter()
            journal.begin_task(number, None)
            strategy.train(experience, eval_streams=[], num_workers=0)
            classes = [source.class_names[c] for c in scenario.task_classes[number]]
            bank.append(strategy.selection, classes)
            timing.wait(given.device)
            seconds.append(time.perf_counter() - started)
            resident.append(resident_bytes())
            if (number + 1) % given.evaluate_every == 0:
                accuracy.append(accuracy_of(strategy, source.test))
    return seconds, resident, accuracy


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Compare the first tasks with the last ones; see `main`."""
    if given.warm_up:
        learn(given.warm_up, given)
    seconds, resident, accuracy = learn(given.tasks, given)
    part = max(1, given.tasks // 10)
    ends = {"first": slice(part), "last": slice(-part, None)}
    times = {k: statistics.median(seconds[own]) for k, own in ends.items()}
    memory = {k: statistics.median(resident[own]) for k, own in ends.items()}
    return {
        "tasks": given.tasks, "warm_up": given.warm_up, "tasks_at_each_end": part,
        **timing.machine(given.device),
        "seconds": times, "resident_bytes": memory, "evaluations": len(accuracy),
        "last_over_first": {
            "seconds": times["last"] / times["first"], "memory": memory["last"] / memory["first"]
        },
    }  # fmt: skip


def summary(found: dict[str, Any]) -> Iterator[str]:
    """Yield lines to read."""
    part, ratio = found["tasks_at_each_end"], found["last_over_first"]
    for end in ("first", "last"):
        yield (
            f"{end} {part} of {found['tasks']} tasks: {1e3 * found['seconds'][end]:.1f} ms"
            f" per task, {found['resident_bytes'][end] / 1e6:.0f} MB"
        )
    yield f"last / first: {ratio['seconds']:.3f} in time, {ratio['memory']:.3f} in memory"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    timing.add_options(parser, device="cpu")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--warm-up", type=int, default=300, help="tasks of another stream before")
    parser.add_argument("--evaluate-every", type=int, default=100, help="tasks")
    given = timing.parse(parser, arguments, "tasks", "evaluate_every")
    found = measure(given)
    timing.show(found, given.json, summary(found))


if __name__ == "__main__":
    main()
