"""The process that measures the parts of `benchmarks.gpu`: see there."""

import argparse
import sys
from collections.abc import Callable, Sequence

import torch

from benchmarks import gpu_checks, gpu_steps, timing
from benchmarks.budget import Part, Report, run_parts
from benchmarks.gpu_steps import Bench
from cl_clipfit.runtime.out_of_memory import release

PARTS: dict[str, Callable[..., None]] = {
    "matmul": gpu_steps.matmul,
    "clipfit": gpu_steps.clipfit,
    "mergetune": gpu_steps.mergetune,
    "text": gpu_steps.text,
    "evaluate": gpu_steps.evaluate,
    "memory_retry": gpu_checks.memory_retry,
    "nan_watch": gpu_checks.nan_watch,
    "determinism": gpu_checks.determinism,
    "all_reduce": gpu_checks.all_reduce,
}


def work(bench: Bench, name: str, report: Report) -> None:
    """Do a part, as "clipfit:ViT-B-16:64"."""
    kind, *sizes = name.split(":")
    try:
        PARTS[kind](bench, report, *(int(s) if s.isdigit() else s for s in sizes))
    finally:
        if bench.cuda:
            release()


def broken(device: torch.device) -> bool:
    """Return whether a GPU answers no more: some errors stay with the process."""
    try:
        timing.wait(device)
        torch.zeros(1, device=device).item()
    except RuntimeError:
        return True
    return False


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, and print a line about every event."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    timing.add_options(parser, device="auto")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--matmul", type=int, default=8192, help="side of the square product")
    parser.add_argument("--seconds", type=float, default=400.0, help="for all parts")
    parser.add_argument("--each", type=float, default=2.0, help="seconds of every measurement")
    parser.add_argument("parts", nargs="+", help="NAME=CAP, in order of importance")
    given = timing.parse(parser, arguments, "classes", "matmul")
    wanted = [part.rpartition("=") for part in given.parts]
    bench = Bench(given.device, given.classes, given.matmul, given.each)
    run_parts(
        [Part(name, float(cap)) for name, _, cap in wanted],
        lambda name, report: work(bench, name, report),
        given.seconds,
        sys.stdout,
        lambda: broken(bench.device),
    )


if __name__ == "__main__":
    main()
