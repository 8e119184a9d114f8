"""Time the sum of gradients over processes, one a GPU: `torch.distributed`'s all-reduce.

    python -m benchmarks.all_reduce --processes 2

Prints JSON. It needs torch alone. On a machine without GPUs the processes use gloo on the CPU.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

SIZES = {
    "clipfit": 46_080,  # fp32 numbers that CLIPFit trains on ViT-B/16
    "million": 1_000_000,
    "all_of_vit_b_16": 149_620_737,
}
WARM_UP, CALLS = 3, 20
FEW = 10**7  # numbers; longer sums on a CPU are repeated less often


def measure(rank: int, processes: int, store: str, sizes: dict[str, int]) -> dict[str, Any]:
    """Join a group of processes and time its sums.

    Args:
        rank: of this process, from 0.
        processes: of the group.
        store: a new file that all of them see.
        sizes: numbers of each sum, by name.

    Returns:
        by name "numbers", "bytes", "seconds" of one sum, and "bytes_per_second" of each link as a
        ring sends them, 2 (P - 1) / P times the bytes.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=processes)
    try:
        found = {}
        for name, count in sizes.items():
            values = torch.full((count,), float(rank + 1), device=device)
            dist.all_reduce(values)
            right = bool((values == processes * (processes + 1) / 2).all())
            seconds = _time(values)
            sent = 2 * (processes - 1) / processes * values.numel() * values.element_size()
            found[name] = {
                "numbers": count, "bytes": values.numel() * values.element_size(),
                "seconds": seconds, "bytes_per_second": sent / seconds, "right": right,
            }  # fmt: skip
        return {"processes": processes, "backend": backend, **found}
    finally:
        dist.destroy_process_group()


def _time(values: torch.Tensor) -> float:
    """Return the median seconds of a sum. Every process takes as many, or one would wait for ever.

    On a GPU the clock of the host is right here: each sum is waited for, as a step waits for it.
    """
    times = []
    values.zero_()
    calls = CALLS if values.is_cuda or values.numel() < FEW else 3
    for number in range(WARM_UP + calls):
        begin = time.perf_counter()
        dist.all_reduce(values)
        if values.is_cuda:
            torch.cuda.synchronize(values.device)
        if number >= WARM_UP:
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _rank(rank: int, processes: int, folder: str, sizes: dict[str, int]) -> None:
    found = measure(rank, processes, f"{folder}/store", sizes)
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, start the processes and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--largest", type=int, default=max(SIZES.values()),
                        help="numbers of a sum; larger ones are left out")  # fmt: skip
    given = parser.parse_args(arguments)
    if given.processes < 1:
        parser.error("--processes must be 1 or more")
    if 0 < torch.cuda.device_count() < given.processes:
        parser.error(
            f"--processes {given.processes}: PyTorch finds {torch.cuda.device_count()} GPUs"
        )
    sizes = {name: count for name, count in SIZES.items() if count <= given.largest}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_rank, (given.processes, folder, sizes), given.processes)
        sys.stdout.write(Path(folder, "found.json").read_text() + "\n")


if __name__ == "__main__":
    main()
