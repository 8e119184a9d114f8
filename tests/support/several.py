"""Shared pieces: several processes that find each other as those of torchrun do."""

import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

_SECONDS = 100  # after which a test has hung


def several(count: int, work: Callable[[int], int], outputs: Path) -> list[int]:
    """Call a function in forked processes, which have imported all that this one has.

    Args:
        count: processes.
        work: takes the number of the process; returns its exit code.
        outputs: folder of `rank-N.txt`, what each process printed.

    Returns:
        their exit codes; of one that was killed, the negative number of the signal.
    """
    outputs.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which are idle
            child = os.fork()
        if child == 0:
            os._exit(_in_child(rank, count, port, work, outputs / f"rank-{rank}.txt"))
        children.append(child)
    codes: dict[int, int] = {}
    ends = time.monotonic() + _SECONDS
    while len(codes) < count and time.monotonic() < ends:
        for child in children:
            if child not in codes and (done := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(done[1])
        time.sleep(0.01)
    for child in children:
        if child not in codes:
            os.kill(child, signal.SIGKILL)
            codes[child] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return [codes[child] for child in children]


def _in_child(rank: int, count: int, port: int, work: Callable[[int], int], output: Path) -> int:
    try:
        with output.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        # Python's own streams may be captured by the test.
        sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", buffering=1) for n in (1, 2))
        os.environ.update(
            RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
        return work(rank)
    except BaseException:
        traceback.print_exc()
        return 99


def errors(outputs: Path) -> list[str]:
    """Return the errors that all processes printed; PyTorch may log that its store has gone."""
    return [line for line in printed(outputs) if line.startswith("error: ")]


def printed(outputs: Path) -> list[str]:
    """Return the lines that all processes printed."""
    files = sorted(outputs.glob("rank-*.txt"))
    return [line for file in files for line in file.read_text().splitlines() if line]
