"""A bank of very many deltas, and statistics of very many classes: memory and time, for real.

    python -m benchmarks.many --json

Deltas are small (`--values` numbers each), so that they fit on any disk; what grows with their
number is the index, the files and the class means. The bank is in a temporary folder, by default in
memory if the system has a folder for that, and is removed at the end; on a disk, two thirds of an
`append` and more are waiting for it, which `disk` measures with a few.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import timing
from cl_clipfit.bank.routing import TaskRouter, class_statistics
from cl_clipfit.bank.store import DeltaBank
from cl_clipfit.heads.linear import class_mean_head, lda_head
from cl_clipfit.heads.statistics import Statistics

IN_MEMORY = Path("/dev/shm")
BASE = {"architecture": "drawn", "pretrained": "random", "weights_sha256": "0"}
LOOKED_UP = 1000  # deltas that are read at random
ON_DISK = 50  # deltas that are written to see how long the disk takes
QUERIES = 256  # images that are routed or scored at a time
PER_CLASS = 2  # images of a class that are summed
AT_A_TIME = 1000  # classes of a task in the statistics
BITS = 18  # for a number of a task, or of a class


class Clock:
    """Seconds of named stages, and the peak of the process after each.

    Attributes:
        stages: "seconds", those of them that the processor worked for this process
            ("processor_seconds"), and "peak_bytes", by name.
    """

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        """Do work and note what it took."""
        begin, worked = time.perf_counter(), time.process_time()
        done = work()
        self.stages[name] = {
            "seconds": time.perf_counter() - begin,
            "processor_seconds": time.process_time() - worked,
            "peak_bytes": timing.peak_bytes(),
        }
        return done


def delta_of(task: int, values: int) -> dict[str, Tensor]:
    """Return what a task trained: the same numbers for the same task."""
    return {"norm": torch.full((values,), float(task))}


def fill(bank: DeltaBank, tasks: int, values: int) -> list[float]:
    """Append tasks; return how many in a second of the processor, in the first and last tenth.

    Seconds of the processor, as other jobs may slow down one of the two.
    """
    tenth, times = max(1, tasks // 10), [time.process_time()]
    for task in range(len(bank) + 1, len(bank) + tasks + 1):
        bank.append(delta_of(task, values), [f"class {task}"])
        times.append(time.process_time())
    return [tenth / (times[tenth] - times[0]), tenth / (times[-1] - times[-1 - tenth])]


def bank_of_many(given: argparse.Namespace, folder: Path, clock: Clock) -> dict[str, Any]:
    """Write a bank, open it again, and read deltas at random."""
    bank = DeltaBank.create(folder, BASE, "clipfit")
    first, last = clock("append", lambda: fill(bank, given.deltas, given.values))
    opened = clock("open", lambda: DeltaBank.open(folder))
    places = torch.randint(1, given.deltas + 1, (LOOKED_UP,)).tolist()

    def look_up() -> bool:
        return all(
            bool((opened.load(task)["norm"] == task).all())
            and opened.delta(task).classes == [f"class {task}"]
            for task in places
        )

    right = clock("look_up", look_up)
    worked = clock.stages["look_up"]["processor_seconds"]
    size = sum(file.stat().st_size for file in opened.index_files())
    return {
        "deltas": len(opened), "right": right, "index_bytes": size,
        "index_files": len(opened.index_files()),
        "appends_per_second": {"first_tenth": first, "last_tenth": last},
        "milliseconds_of_a_look_up": 1000 * worked / LOOKED_UP,
    }  # fmt: skip


def disk(given: argparse.Namespace) -> float:
    """Return the seconds of an append to a bank on the disk of temporary files."""
    with tempfile.TemporaryDirectory() as folder:
        bank = DeltaBank.create(Path(folder), BASE, "clipfit")
        begin = time.perf_counter()
        fill(bank, ON_DISK, given.values)
        return (time.perf_counter() - begin) / ON_DISK


def means_of(labels: Tensor, width: int) -> Tensor:
    """Return a direction of unit length for every label, in no memory but that of the result."""
    bits = (labels[:, None] >> torch.arange(BITS)) & 1
    return F.normalize((2.0 * bits - 1) @ _mixing(width), dim=-1)


def _mixing(width: int) -> Tensor:
    return torch.randn(BITS, width, generator=torch.Generator().manual_seed(0))


def images_of(labels: Tensor, width: int) -> Tensor:
    """Return the features of one image for every label, near its class mean."""
    draws = torch.Generator().manual_seed(int(labels[0]))
    noise = torch.randn(len(labels), width, generator=draws)
    return F.normalize(means_of(labels, width) + 0.1 * noise / width**0.5, dim=-1)


def routing(given: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """Make a router of as many tasks as deltas, a class each, and route images."""
    width = given.width

    def statistics() -> Iterator[dict[str, Tensor]]:
        for task in range(0, given.deltas, AT_A_TIME):
            labels = torch.arange(task, min(task + AT_A_TIME, given.deltas))
            twice = labels.repeat_interleave(PER_CLASS)
            whole = class_statistics(images_of(twice, width), twice)
            shared = whole["scatter"] / len(labels)
            for place in range(len(labels)):
                one = slice(place, place + 1)
                yield {**{n: whole[n][one] for n in ("labels", "counts", "means")},
                       "scatter": shared}  # fmt: skip

    found: dict[str, Any] = {"tasks": given.deltas, "width": width}
    labels = torch.randint(0, given.deltas, (QUERIES,), generator=torch.Generator().manual_seed(1))
    queries = images_of(labels, width)
    rule: Any
    for rule in ("nearest-mean", "gaussian"):
        router = clock(f"make_router_{rule}", lambda rule=rule: TaskRouter(statistics(), rule))
        chosen = clock(f"route_{rule}", lambda router=router: router.route(queries))
        seconds = clock.stages[f"route_{rule}"]["processor_seconds"]
        found[rule] = {
            "right": float((chosen == labels).float().mean()),
            "milliseconds_of_an_image": 1000 * seconds / QUERIES,
        }
    return found


def statistics_of_many(given: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """Sum the features of many classes, task by task, and fit two heads to the sums."""
    width, classes = given.width, given.classes
    times: list[float] = []

    def add_all() -> Statistics:
        total = Statistics.empty(width, classes)
        for start in range(0, classes, AT_A_TIME):
            labels = torch.arange(start, min(start + AT_A_TIME, classes))
            labels = labels.repeat_interleave(PER_CLASS)
            features = images_of(labels, width)
            begin = time.process_time()
            present, places = labels.unique(return_inverse=True)
            added = Statistics.of(features, places, len(present))
            total = total.take_in(added, present, classes)
            times.append(time.process_time() - begin)
        return total

    total = clock("statistics", add_all)
    labels = torch.arange(0, classes, max(1, classes // QUERIES))[:QUERIES]
    queries = images_of(labels, width)
    heads = {"class_means": class_mean_head, "lda": lda_head}
    right = {}
    for name, make in heads.items():
        head = clock(f"fit_{name}", lambda make=make: make(total))
        scores = clock(f"score_{name}", lambda head=head: head(queries))
        right[name] = float((scores.argmax(1) == labels).float().mean())
        del head, scores
    tenth = max(1, len(times) // 10)
    return {
        "classes": classes, "width": width, "bytes": total.bytes, "right": right,
        "seconds_of_a_task": {
            "first_tenth": sum(times[:tenth]) / tenth, "last_tenth": sum(times[-tenth:]) / tenth,
        },
    }  # fmt: skip


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts that are wanted, the ones of little memory first."""
    torch.manual_seed(0)
    found: dict[str, Any] = {
        name: getattr(given, name) for name in ("deltas", "values", "classes", "width")
    }
    clock = Clock()
    where = given.folder or (IN_MEMORY if IN_MEMORY.is_dir() else None)
    found |= timing.machine()
    if "bank" in given.only:
        with tempfile.TemporaryDirectory(dir=where) as folder:
            found["bank"] = bank_of_many(given, Path(folder), clock)
        found["bank"]["in_memory"] = where == IN_MEMORY
        found["bank"]["seconds_of_an_append_on_disk"] = disk(given)
    if "routing" in given.only:
        found["routing"] = routing(given, clock)
    if "statistics" in given.only:
        found["statistics"] = statistics_of_many(given, clock)
    return {**found, "stages": clock.stages}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    timing.add_options(parser)
    parts = ("bank", "routing", "statistics")
    parser.add_argument("--deltas", type=int, default=100_000, help="of the bank, a class each")
    parser.add_argument("--values", type=int, default=64, help="numbers of a delta")
    parser.add_argument("--classes", type=int, default=100_000, help="of the statistics")
    parser.add_argument("--width", type=int, default=512, help="of a feature")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--folder", type=Path, help="where the bank is written and removed")
    given = timing.parse(parser, arguments, "deltas", "values", "classes", "width")
    if max(given.deltas, given.classes) > 2**BITS:
        parser.error(f"--deltas and --classes must be {2**BITS} or less")
    with timing.one_line(parser):
        found = measure(given)
    timing.show(found, given.json)


if __name__ == "__main__":
    main()
