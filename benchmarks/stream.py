"""Time the way from CIFAR-100's archive to an Avalanche stream, and the memory that it takes.

    python -m benchmarks.stream --data-dir FOLDER --repeats 3 --json

Without an archive in FOLDER one is written there, in the official format and size but with drawn
pixels. Every repeat is a process of its own; its peaks leave out what the imports take. Seconds of
online streams tell whether they grow with the number of experiences, or faster.
"""

import argparse
import io
import json
import pickle
import re
import statistics
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from benchmarks import timing
from cl_clipfit import DataRequest, Options, Source, build_scenario
from cl_clipfit.data.formats.cifar import CIFAR100
from cl_clipfit.scenarios.split_cifar100 import CLASS_ORDER, TASKS, load

ONLINE = 10  # images of an online experience
VALUES = 154  # so many brightnesses: the archive gets the 169 MB of the official one
PROCESS = Path("/proc/self")


class Python2Pickler(pickle._Pickler):
    """Writes bytes as they are, as Python 2 did; in protocol 2 Python 3 would write UTF-8."""

    def save_bytes(self: Any, value: bytes) -> None:
        """Write one string."""
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    dispatch: ClassVar[Any] = {**pickle._Pickler.dispatch, bytes: save_bytes}


def write_archive(folder: Path, train: int, test: int) -> Path:
    """Write an archive of CIFAR-100's format; `train` and `test` images per class."""
    draws = np.random.default_rng(0)
    meta = {"fine_label_names": [name.replace(" ", "_") for name in CIFAR100.names]}
    files: dict[str, dict[str, Any]] = {"meta": meta}
    for name, count in (("train", train), ("test", test)):
        labels = draws.permutation(np.arange(100).repeat(count)).tolist()
        pixels = draws.integers(0, VALUES, (len(labels), 3072), dtype=np.uint8)
        files[name] = {"fine_labels": labels, "data": pixels}
    target = folder / CIFAR100.archive
    part = target.with_suffix(".part")  # an interrupted one must not be taken for a whole one
    with tarfile.open(part, "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            data = io.BytesIO()
            Python2Pickler(data, protocol=2).dump(content)
            info = tarfile.TarInfo(f"{CIFAR100.folder}/{name}")
            info.size = data.tell()
            data.seek(0)
            archive.addfile(info, data)
    part.replace(target)
    return target


def memory(key: str) -> int:
    """Return bytes of this process: "VmRSS", resident now, or "VmHWM", the peak."""
    found = re.search(rf"{key}:\s+(\d+) kB", (PROCESS / "status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def forget_peak() -> None:
    """Let the peak begin anew where the system allows it; else it is that of the process."""
    try:
        (PROCESS / "clear_refs").write_text("5")
    except OSError:
        return


def read(folder: Path) -> Source:
    """Load the scenario's data."""
    return load(Options(), DataRequest(data_dir=folder, unverified=True))


def measure_stages(folder: Path, counts: Sequence[int]) -> dict[str, Any]:
    """Measure in this process: the stages on the way to 10 tasks, then the online streams.

    Args:
        folder: holds the archive.
        counts: numbers of online experiences.

    Returns:
        seconds and peak bytes of each stage, the numbers of images, seconds by number of
        experiences.
    """
    begun: list[Any] = []
    stages: dict[str, Callable[[], Any]] = {
        "load": lambda: read(folder),
        "cut": lambda: build_scenario("stream", begun[0], tasks=TASKS, order=CLASS_ORDER),
        "avalanche": lambda: begun[1].benchmark,
    }
    imports = memory("VmRSS")
    seconds, peaks = {}, {}
    for name, stage in stages.items():
        forget_peak()
        begin = time.perf_counter()
        begun.append(stage())
        seconds[name] = time.perf_counter() - begin
        peaks[name] = memory("VmHWM") - imports
    source, _, benchmark = begun
    assert len(benchmark.train_stream) == TASKS
    return {
        "seconds": seconds,
        "peak_bytes": peaks,
        "images": [len(source.train), len(source.test)],
        "online_seconds": {str(count): time_online(source, count) for count in counts},
    }


def time_online(source: Source, count: int) -> float:
    """Return seconds from the data to a stream of `count` online experiences."""
    limit = count * ONLINE // len(source.class_names)  # images per class
    begin = time.perf_counter()
    scenario = build_scenario("stream", source, tasks=TASKS, limit=limit, online=ONLINE)
    assert len(scenario.benchmark.train_stream) == count
    return time.perf_counter() - begin


def in_child(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return what `measure_stages` finds in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.stream", "--child", "--data-dir", str(folder)]
    command += ["--threads", str(given.threads), "--experiences", *map(str, given.experiences)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Write the archive where there is none; return the medians of all repeats."""
    archive = folder / CIFAR100.archive
    if not archive.is_file():
        write_archive(folder, given.train, given.test)
    runs = [in_child(given, folder) for _ in range(given.repeats)]
    found = {
        "archive_bytes": archive.stat().st_size,
        "images": runs[0]["images"],
        "repeats": given.repeats,
        "threads": torch.get_num_threads(),
    }
    for key in ("seconds", "peak_bytes", "online_seconds"):
        found[key] = {n: statistics.median(run[key][n] for run in runs) for n in runs[0][key]}
    if len(given.experiences) > 1:
        few, many = min(given.experiences), max(given.experiences)
        online = found["online_seconds"]
        # 1 where the seconds grow in proportion to the number of experiences
        found["online_growth"] = online[str(many)] / online[str(few)] / (many / few)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="keeps the archive; default: none is kept")
    parser.add_argument("--train", type=int, default=500, help="images per class, of a new archive")
    parser.add_argument("--test", type=int, default=100, help="images per class, of a new archive")
    parser.add_argument("--experiences", type=int, nargs="*", default=[500, 1000, 2000, 5000],
                        help=f"of online streams, {ONLINE} images each")  # fmt: skip
    timing.add_options(parser, repeats=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = timing.parse(parser, arguments, "train", "test")
    if any(n < ONLINE or n % ONLINE for n in given.experiences):
        parser.error(f"--experiences must be multiples of {ONLINE}, {ONLINE} or more")
    if not (PROCESS / "status").is_file():
        parser.error("memory is read from /proc, which this system lacks")
    if given.data_dir and not given.data_dir.is_dir():
        parser.error(f"--data-dir {given.data_dir}: no such folder")
    if given.child:
        print(json.dumps(measure_stages(given.data_dir, given.experiences)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(given, given.data_dir or Path(temporary))
    timing.show(found, given.json)


if __name__ == "__main__":
    main()
