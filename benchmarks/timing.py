"""What the benchmarks share: their options, turns, peaks of memory, and a word on the machine."""

import argparse
import contextlib
import itertools
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cl_clipfit.data.formats.cifar import CIFAR100
from cl_clipfit.errors import UserError
from cl_clipfit.runtime.allocator import keep_freed_memory

TEMPLATE = "a photo of a {}."
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # PyTorch on Linux: 1 asks for huge pages in main memory
_HELP = {
    "model": "an architecture, or a model's name",
    "batch_size": "images",
    "repeats": "turns that count",
    "device": "cpu, cuda, or auto: cuda where there is one",
}


def add_options(parser: argparse.ArgumentParser, **defaults: str | int) -> None:
    """Add --threads and --json, and those of --model, --batch-size, --repeats, --device named."""
    for name, default in defaults.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(default), default=default, help=_HELP[name])
    parser.add_argument("--threads", type=int, default=0, help="0: as PyTorch chooses")
    parser.add_argument(
        "--allocator", choices=["kept", "system"], default="kept",
        help="kept: freed memory stays with the process, as run.py has it; system: as it is",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON alone")


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, *counts: str
) -> argparse.Namespace:
    """Read the options, set the threads and resolve `--device auto`.

    Args:
        parser: with `add_options`; it ends the program where an option is wrong.
        arguments: default those of the command.
        counts: further options, by attribute, whose numbers must be 1 or more.
    """
    given = parser.parse_args(arguments)
    for name in ("batch_size", "repeats", *counts):
        values = getattr(given, name, 1)
        if min(values if isinstance(values, list) else [values], default=1) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    if given.threads < 0:
        parser.error("--threads must be 0 or more")
    if given.allocator == "kept":
        keep_freed_memory()
    if given.threads:
        torch.set_num_threads(given.threads)
    if "device" in given:
        cuda = torch.cuda.is_available()
        if given.device == "auto":
            given.device = "cuda" if cuda else "cpu"
        try:
            kind = torch.device(given.device).type
        except RuntimeError:
            kind = ""
        if kind != "cpu" and not (kind == "cuda" and cuda):
            parser.error(f"--device {given.device}: PyTorch finds no such device; try auto")
    return given


@contextlib.contextmanager
def one_line(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Print what is wrong with the input as the parser does, without a traceback."""
    try:
        yield
    except UserError as error:
        parser.error(str(error))


def model_name(name: str) -> str:
    """Return the name of a model with untrained weights where only an architecture is given."""
    return name if ":" in name or name == "mini" else f"{name}:random"


def class_names(count: int) -> list[str]:
    """Return the class names of CIFAR-100; after them the same with numbers.

    Example:
        >>> class_names(201)[::100]
        ['apple', 'apple 2', 'apple 3']
    """
    names, rounds = CIFAR100.names, -(-count // len(CIFAR100.names))
    numbered = [f"{name} {turn}" for turn in range(2, rounds + 1) for name in names]
    return [*names, *numbered][:count]


def free_port() -> int:
    """Return a port of this machine that nothing uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait(device: str | torch.device) -> None:
    """Wait until a device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def take_turns(
    ways: Mapping[str, Callable[[], Any]], repeats: int, device: str | torch.device = "cpu",
    warm: int | None = None,
) -> dict[str, list[float]]:  # fmt: skip
    """Time functions in turns, so that a machine that slows down slows all of them.

    Args:
        ways: functions by name.
        repeats: turns that count.
        device: where they compute.
        warm: turns that warm up; default 1, on a GPU 3.

    Returns:
        seconds of each call, by name, in their order; calls that warm up are left out.
    """
    if warm is None:
        warm = 3 if torch.device(device).type == "cuda" else 1
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + warm):
        for name, function in ways.items():
            wait(device)
            begin = time.perf_counter()
            function()
            wait(device)
            if turn >= warm:
                found[name].append(time.perf_counter() - begin)
    return found


def time_calls(
    function: Callable[[], Any], device: str | torch.device, seconds: float = 2.0, most: int = 20
) -> list[float]:
    """Time one function alone: on a GPU by its own clock, where the host may run ahead.

    Args:
        function: to be called; it is called three times first, to warm up.
        device: where it computes.
        seconds: about how long to repeat it, at least three times.
        most: calls that count.

    Returns:
        seconds of each call that counts.
    """
    for _ in range(2):
        function()
    wait(device)
    begin = time.perf_counter()
    function()
    wait(device)
    once = time.perf_counter() - begin
    calls = max(3, min(most, int(seconds / max(once, 1e-6))))
    if torch.device(device).type != "cuda":
        return take_turns({"": function}, calls, warm=0)[""]
    stream = torch.cuda.current_stream(torch.device(device))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    events[0].record(stream)
    for event in events[1:]:
        function()
        event.record(stream)
    wait(device)
    return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(events)]


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median of each list."""
    return {name: statistics.median(values) for name, values in times.items()}


def ratios(values: Mapping[str, float], pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Return quotients as "over/under"; pairs of which one is missing are left out.

    Example:
        >>> ratios({"old": 6.0, "new": 2.0}, [("old", "new"), ("old", "none")])
        {'old/new': 3.0}
    """
    return {f"{a}/{b}": values[a] / values[b] for a, b in pairs if a in values and b in values}


def peak_of_child(module: str, *options: str) -> int:
    """Return the bytes that a process of its own prints last: `python -m MODULE OPTIONS`.

    A process begins with the peak of the one that starts it: measure memory before anything else.

    Raises:
        UserError: the process failed.
    """
    # What a process keeps for later it does not need.
    command = [sys.executable, "-m", module, *options, "--allocator", "system"]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"peak memory of {module} {' '.join(options)}: {reason}")
    return int(done.stdout.splitlines()[-1])


def peak_bytes(device: str | torch.device = "cpu") -> int:
    """Return the peak of this process: resident memory, or what PyTorch took of a GPU's."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def machine(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return what timings depend on besides the options."""
    cuda = torch.device(device).type == "cuda"
    return {
        "device": str(device),
        "processor": torch.cuda.get_device_name(device)
        if cuda
        else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "huge_pages": os.environ.get(HUGE_PAGES) == "1",
    }


def show(found: Mapping[str, Any], as_json: bool, summary: Iterable[str] | None = None) -> None:
    """Print results as JSON alone, or a summary; default every entry on a line."""
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for line in summary or (f"{key}: {value}" for key, value in found.items()):
        print(line)
