"""What a step, a stream and a bank cost, by formula: for sizes that cannot be measured here.

    python -m benchmarks.cost_model                    # the tables of docs/scaling.md
    python -m benchmarks.cost_model --gpu gpu.json     # the same with a GPU's measured constants

Pure arithmetic: no torch. `MEASURED` machines have constants of the other benchmarks; that of
`ASSUMED` has none yet, and its tables say so until `benchmarks.gpu` has run there.
"""

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

GPUS = (1, 2, 4, 8, 16, 32, 64)
TASKS = (10, 100, 1_000, 10_000)
DIVIDED_PROMPTS = 16  # prompts of each process from which they are divided
FLOAT, DOUBLE = 4, 8  # bytes
HASHED = 1e9  # bytes that a bank reads and hashes in a second, at the end of a run


class Tower(NamedTuple):
    """A transformer: its width, its blocks, and the rows of one sample."""

    width: int
    layers: int
    rows: float


class Architecture(NamedTuple):
    """What the cost of a CLIP depends on.

    Attributes:
        image: of one image, the class token included.
        patch: numbers of a patch, all channels.
        text: of one prompt; its rows are the tokens that are left of it without padding.
        features: d, the length of a feature.
        trained: numbers that CLIPFit trains.
    """

    image: Tower
    patch: int
    text: Tower
    features: int
    trained: int


# Rows of a prompt: 3,163 tokens for 1,000 prompts of CIFAR-100's names (docs/performance.md).
ARCHITECTURES = {
    "ViT-B/16": Architecture(Tower(768, 12, 197), 768, Tower(512, 12, 3.2), 512, 46_080),
    "ViT-L/14": Architecture(Tower(1024, 24, 257), 588, Tower(768, 12, 3.2), 768, 111_616),
}


class Machine(NamedTuple):
    """What a processor, its links and its disk reach.

    Attributes:
        name: to display.
        rate: operations per second of a training step, as `image_step_flops` counts them.
        scoring: operations per second of evaluation.
        overhead: seconds of a step that no operation of a tower explains.
        latency: seconds of an exchange of a few bytes between two processes.
        bandwidth: bytes per second of a link.
        append: seconds of an entry of the bank, the disk included.
    """

    name: str
    rate: float
    scoring: float
    overhead: float
    latency: float
    bandwidth: float
    append: float


# Rates: docs/performance.md, ViT-B/16 in bf16. Exchanges: benchmarks.all_reduce, 2 processes, gloo.
# Entry of the bank: three files, of 17 ms each on the disk of benchmarks.many.
MEASURED = Machine("2 cores with AMX, bf16", 1.02e12, 1.0e12, 0.03, 1.5e-4, 2.6e8, 0.05)
# Not measured: 40 % of a peak of 800e12 as the aim has it, links of 100 GB/s, 30 us to a neighbour.
ASSUMED = Machine("GPU, assumed", 3.2e14, 3.2e14, 0.005, 3e-5, 1e11, 0.01)


class Step(NamedTuple):
    """Seconds of a training step."""

    image: float
    text: float
    exchange: float
    overhead: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


class Stream(NamedTuple):
    """What a whole stream takes: seconds, and bytes on disk or in memory.

    Attributes:
        training: all steps of all tasks.
        evaluation: a pass over the test images of the whole stream after each task that is scored.
        bank: its appends, and the check of all its files at the end.
        bank_bytes: values and statistics of all tasks, on disk.
        router_bytes: class means and one covariance, in memory.
        statistics_bytes: the sums of a closed-form head, in memory.
        heads_bytes: the same on disk, where the bank of such a method keeps them after each task.
    """

    training: float
    evaluation: float
    bank: float
    bank_bytes: float
    router_bytes: float
    statistics_bytes: float
    heads_bytes: float


class Settings(NamedTuple):
    """A stream and how it is trained: that of Split CIFAR-100, with any number of tasks."""

    classes: int = 10  # of a task
    images: int = 5_000  # training images of a task
    tests: int = 1_000  # test images of a task
    epochs: int = 5
    batch: int = 64
    scored: int = 1  # tasks after which the stream is scored: every one, or every n-th


SPLIT_CIFAR100 = Settings()


# ---- operations ----------------------------------------------------------------------------------


def image_step_flops(model: Architecture) -> float:
    """Return the operations of an image in a step: forward, and backward to the first LayerNorm.

    The same as `flops.image_tower_flops`, for frozen matrices and a last block of one token: every
    product counts twice, those of attention three times (four of six are backward).
    """
    width, layers, rows = model.image
    block = 2 * 24 * width**2 * rows + 3 * 4 * rows**2 * width
    # In the last block one row asks, and all rows answer: 4 w^2 of 24 w^2 a row, keys and values.
    last = 2 * (4 * width**2 * rows + 20 * width**2) + 3 * 4 * rows * width
    patches = 2 * (rows - 1) * model.patch * width
    return patches + (layers - 1) * block + last + 4 * width * model.features


def image_forward_flops(model: Architecture) -> float:
    """Return the operations of an image in evaluation."""
    width, layers, rows = model.image
    block = 24 * width**2 * rows + 4 * rows**2 * width
    last = 4 * width**2 * rows + 20 * width**2 + 4 * rows * width
    patches = 2 * (rows - 1) * model.patch * width
    return patches + (layers - 1) * block + last + 2 * width * model.features


def prompt_flops(model: Architecture) -> float:
    """Return the operations of a prompt, forward; attention among so few tokens is left out."""
    return 24 * model.text.width**2 * model.text.rows * model.text.layers


# ---- seconds -------------------------------------------------------------------------------------


def exchange_seconds(
    model: Architecture, machine: Machine, gpus: int, batch: int, prompts: int, divided: bool
) -> float:
    """Return what the processes of a step wait for each other.

    They sum the gradients (a ring sends 2 (P - 1) / P of them over each link), gather the features
    of the batch, and those of the prompts if these are divided, and agree on two flags: each takes
    a latency for every doubling of the processes.
    """
    if gpus == 1:
        return 0.0
    ring = (gpus - 1) / gpus
    bytes_sent = 2 * ring * model.trained * FLOAT + ring * batch * model.features * FLOAT
    bytes_sent += ring * prompts * model.features * FLOAT if divided else 0
    exchanges = 4 if divided else 3
    return exchanges * machine.latency * math.ceil(math.log2(gpus)) + bytes_sent / machine.bandwidth


def step_seconds(
    model: Architecture, machine: Machine, gpus: int = 1, batch: int = 64, prompts: int = 100
) -> Step:
    """Return what a step of CLIPFit takes.

    Args:
        model: what is trained.
        machine: each of the processes has one.
        gpus: processes P, which share the batch, and prompts once each has 16 of them.
        batch: images of all processes together.
        prompts: of the classes that the step ranks.
    """
    divided = gpus > 1 and prompts >= DIVIDED_PROMPTS * gpus
    images = math.ceil(batch / gpus)
    encoded = math.ceil(prompts / gpus) if divided else prompts
    return Step(
        images * image_step_flops(model) / machine.rate,
        encoded * 2 * prompt_flops(model) / machine.rate,
        exchange_seconds(model, machine, gpus, batch, prompts, divided),
        machine.overhead,
    )


def efficiency(
    model: Architecture, machine: Machine, gpus: int, batch: int = 64, prompts: int = 100
) -> float:
    """Return how much of P processes is used: the time of one, over P times the time of P."""
    one = step_seconds(model, machine, 1, batch, prompts).total
    return one / (gpus * step_seconds(model, machine, gpus, batch, prompts).total)


def stream(
    model: Architecture, machine: Machine, tasks: int, gpus: int = 1,
    how: Settings = SPLIT_CIFAR100, seen: bool = False,
) -> Stream:  # fmt: skip
    """Return what a stream of CLIPFit takes.

    Args:
        model: what is trained.
        machine: of each process.
        tasks: T.
        gpus: processes.
        how: the sizes of a task, and its training.
        seen: whether a step encodes the prompts of all classes seen (`kd_scope=seen`) and not those
            of the task alone.
    """
    steps = how.epochs * math.ceil(how.images / how.batch)
    # The prompts of a step grow by a task's classes with every task: their mean is that half-way.
    prompts = math.ceil(how.classes * (tasks + 1) / 2) if seen else how.classes
    step = step_seconds(model, machine, gpus, how.batch, prompts).total
    classes, tests = tasks * how.classes, tasks * how.tests
    scored = tests * image_forward_flops(model) / gpus + classes * prompt_flops(model)
    d = model.features
    sums = DOUBLE * (d * d + d * classes + classes)
    entry = FLOAT * (model.trained + d * d + d * how.classes)
    return Stream(
        tasks * steps * step,
        math.ceil(tasks / how.scored) * scored / machine.scoring,
        tasks * (machine.append + entry / HASHED),
        tasks * entry,
        DOUBLE * (d * d + d * classes),
        sums,
        tasks * sums,
    )


# ---- constants of a GPU --------------------------------------------------------------------------


def machine_of(found: Mapping[str, Any]) -> Machine:
    """Return the constants that a result of `benchmarks.gpu` holds; others stay assumed.

    Raises:
        KeyError: it has no step of CLIPFit on ViT-B/16 at batch size 64.
    """
    parts = found["parts"]
    ways = parts["clipfit:ViT-B-16:64"]["found"]
    model, batch = ARCHITECTURES["ViT-B/16"], 64
    tower = ways["image_tower_bf16"]["seconds"]
    rate = batch * image_step_flops(model) / tower
    text = found["classes"] * 2 * prompt_flops(model) / rate
    overhead = max(0.0, ways["ours_bf16"]["seconds"] - tower - text)
    scoring, latency, bandwidth = rate, ASSUMED.latency, ASSUMED.bandwidth
    rows = parts.get("evaluate:ViT-B-16", {}).get("found", {}).get("ours_bf16", {})
    if speed := rows.get("images_per_second"):
        scoring = speed * image_forward_flops(model)
    sums = parts.get("all_reduce", {}).get("found", {})
    if "clipfit" in sums:
        doublings = math.ceil(math.log2(sums["processes"]))
        latency = sums["clipfit"]["seconds"] / doublings
        bandwidth = sums["all_of_vit_b_16"]["bytes_per_second"]
    name = found["machine"].get("processor", "GPU")
    return Machine(str(name), rate, scoring, overhead, latency, bandwidth, ASSUMED.append)


# ---- tables --------------------------------------------------------------------------------------


def steps_table(machine: Machine, batches: Sequence[int] = (64, 256)) -> Iterator[str]:
    """Yield a table in Markdown: milliseconds of a step and efficiency, by GPUs."""
    cells = [(name, batch) for name in ARCHITECTURES for batch in batches]
    yield (
        f"| {machine.name}; 100 prompts | " + " | ".join(f"{n}, batch {b}" for n, b in cells) + " |"
    )
    yield "| --- |" + " --- |" * len(cells)
    for gpus in GPUS:
        row = []
        for name, batch in cells:
            model = ARCHITECTURES[name]
            step = step_seconds(model, machine, gpus, batch)
            share = efficiency(model, machine, gpus, batch)
            row.append(f"{1000 * step.total:.1f} ms, {share:.0%}")
        yield f"| {gpus} | " + " | ".join(row) + " |"


def streams_table(machine: Machine, gpus: Sequence[int] = (1, 8, 64)) -> Iterator[str]:
    """Yield a table in Markdown: how long streams of ViT-B/16, by tasks."""
    model, heads = ARCHITECTURES["ViT-B/16"], []
    for count in gpus:
        heads += [f"training, {count}", f"`seen`, {count}", f"evaluation, {count}"]
    yield f"| {machine.name}; by tasks and processes | " + " | ".join(heads) + " |"
    yield "| --- |" + " --- |" * len(heads)
    for tasks in TASKS:
        row = []
        for count in gpus:
            one, all_seen = (stream(model, machine, tasks, count, seen=s) for s in (False, True))
            row += [_time(one.training), _time(all_seen.training), _time(one.evaluation)]
        yield f"| {tasks:,} | " + " | ".join(row) + " |"


def banks_table(machine: Machine) -> Iterator[str]:
    """Yield a table in Markdown: what a bank, a router and sums of classes take, by tasks."""
    heads = ("bank, written", "bank, disk", "router", "sums of classes", "heads, disk")
    yield "| ViT-B/16, 10 classes per task | " + " | ".join(heads) + " |"
    yield "| --- |" + " --- |" * len(heads)
    for tasks in (*TASKS, 100_000):
        cost = stream(ARCHITECTURES["ViT-B/16"], machine, tasks)
        sizes = (cost.bank_bytes, cost.router_bytes, cost.statistics_bytes, cost.heads_bytes)
        yield f"| {tasks:,} | {_time(cost.bank)} | " + " | ".join(map(_bytes, sizes)) + " |"


def _time(seconds: float) -> str:
    """Return a time with two digits, in the unit that suits it.

    Example:
        >>> [_time(s) for s in (0.3, 75, 5000, 40_000, 1e9)]
        ['0.3 s', '75 s', '83 min', '11 h', '12,000 days']
    """
    units = [(86_400, "days"), (3600, "h"), (60, "min"), (1, "s")]
    size, unit = next((u for u in units if seconds >= 2 * u[0]), units[-1])
    value = float(f"{seconds / size:.2g}")
    return f"{value:,.0f} {unit}" if value >= 10 else f"{value:g} {unit}"


def _bytes(count: float) -> str:
    size, unit = next(u for u in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")) if count >= u[0])
    return f"{float(f'{count / size:.2g}'):,.10g} {unit}"


def tables(gpu: Machine = ASSUMED) -> dict[str, str]:
    """Return the tables of docs/scaling.md by name."""
    made = {
        "steps": steps_table(gpu),
        "streams": streams_table(gpu),
        "streams-cpu": streams_table(MEASURED, (1, 2)),
        "banks": banks_table(MEASURED),
    }
    return {name: "\n".join(lines) for name, lines in made.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpu", type=Path, help="a result of benchmarks.gpu")
    given = parser.parse_args(arguments)
    machine = ASSUMED
    if given.gpu:
        try:
            machine = machine_of(json.loads(given.gpu.read_text()))
        except (OSError, ValueError, KeyError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            parser.error(f"--gpu {given.gpu}: {reason}")
    for name, table in tables(machine).items():
        print(f"{name}\n\n{table}\n")


if __name__ == "__main__":
    main()
