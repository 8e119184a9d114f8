"""Time a training step of CLIPFit and an evaluation pass that several processes share.

    python -m benchmarks.scaling --model ViT-B-32 --processes 1 2 --batch-size 16 --json

The batch is that of all processes together, so that every number of them does the same work;
efficiency is the time of one process over N times that of N. That of "cpu" seconds, which a
process computed in a step, can be compared where other programs use the machine too, but leaves out
waiting. Untrained weights, drawn images.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

from benchmarks import timing
from benchmarks.growth import make_step
from cl_clipfit import create_classifier
from cl_clipfit.runtime import processes
from cl_clipfit.runtime.shares import fit_everywhere
from cl_clipfit.strategies.clipfit import ClipFitOptions


def measure_one(given: argparse.Namespace) -> dict[str, Any]:
    """Time steps and passes in one of several processes, which all do the same.

    Returns:
        "step_seconds", "evaluation_seconds", "cpu_seconds" of a step, and "bytes_per_step" that a
        process gives to others.
    """
    torch.manual_seed(0)
    model = create_classifier(timing.model_name(given.model), given.device, given.precision)
    model.add_classes(timing.class_names(given.classes))
    one_task = argparse.Namespace(**{**vars(given), "classes_per_task": given.classes})
    strategy, step = make_step(one_task, model, ClipFitOptions())
    images = torch.randn(given.images, 3, *model.preprocess.size)

    def shared() -> None:
        fit_everywhere(partial(step, 1))

    steps = _seconds(shared, given)
    cpu = _seconds(shared, given, time.process_time)
    before = processes.bytes_sent()
    shared()
    sent = processes.bytes_sent() - before
    return {
        "step_seconds": steps,
        "cpu_seconds": cpu,
        "evaluation_seconds": _seconds(lambda: strategy.score_all(images), given),
        "bytes_per_step": sent,
        "trained_numbers": strategy.trained_numbers(),
    }


def _seconds(
    function: Callable[[], Any], given: argparse.Namespace,
    clock: Callable[[], float] = time.perf_counter,
) -> float:  # fmt: skip
    """Return the median time of a call; each begins when all processes are ready."""
    times = []
    for turn in range(given.repeats + 1):
        processes.all_have(True)
        begin = clock()
        function()
        timing.wait(given.device)
        if turn:  # the first one warms up
            times.append(clock() - begin)
    return statistics.median(times)


def _process(rank: int, count: int, port: int, given: argparse.Namespace, file: str) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.set_num_threads(given.threads or 1)
    with processes.joined(given.device):
        given.device = f"cuda:{rank}" if given.device == "cuda" else given.device
        found = measure_one(given)
    if rank == 0:
        Path(file).write_text(json.dumps({**found, **timing.machine(given.device)}))


def measure_group(count: int, given: argparse.Namespace) -> dict[str, Any]:
    """Start processes, and return what the first one measured."""
    # A forked process has imported everything already, but cannot use a GPU.
    method = "spawn" if given.device == "cuda" else "fork"
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/found.json"
        given_to_all = count, timing.free_port(), given, file
        multiprocessing.start_processes(_process, given_to_all, count, start_method=method)
        found: dict[str, Any] = json.loads(Path(file).read_text())
    return found


def summarise(groups: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return efficiencies by the number of processes, relative to the first number.

    Example:
        >>> steps = {1: {"step_seconds": 6.0}, 2: {"step_seconds": 4.0}}
        >>> both = {"cpu_seconds": 1.0, "evaluation_seconds": 1.0}
        >>> summarise({n: {**group, **both} for n, group in steps.items()})["step_efficiency"]
        {1: 1.0, 2: 0.75}
    """
    first = min(groups)
    return {
        f"{what}_efficiency": {
            n: first * groups[first][f"{what}_seconds"] / (n * group[f"{what}_seconds"])
            for n, group in groups.items()
        }
        for what in ("step", "cpu", "evaluation")
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    timing.add_options(parser, model="ViT-B-32", batch_size=16, repeats=3, device="cpu")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--images", type=int, default=64, help="of an evaluation pass")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    given = timing.parse(parser, arguments, "processes", "classes", "images")
    if given.batch_size < max(given.processes):
        parser.error(
            f"--batch-size {given.batch_size} is less than {max(given.processes)} processes"
        )
    with timing.one_line(parser):
        groups = {n: measure_group(n, given) for n in sorted(set(given.processes))}
    machine = {name: groups[min(groups)].pop(name) for name in timing.machine(given.device)}
    for group in groups.values():
        for name in machine:
            group.pop(name, None)
    options = ("model", "precision", "batch_size", "classes", "images", "repeats")
    found = {name: getattr(given, name) for name in options}
    timing.show({**found, **machine, "processes": groups, **summarise(groups)}, given.json)


if __name__ == "__main__":
    main()
