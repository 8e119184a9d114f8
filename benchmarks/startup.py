"""Time how soon a mistake is answered, and how soon a run takes its first optimiser step.

    python -m benchmarks.startup --repeats 3 --json

Every command is a process of its own, and all of them take turns with `import torch`, whose time is
the unit: `mistake` should stay below 1, `first_step` of the demo below 2.5.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import timing
from cl_clipfit.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
MISTAKES = {
    "strategy": ["--strategy", "clipfitt"],
    "scenario": ["--scenario", "split-digit"],
    "model": ["--model", "ViT-B-61:openai"],
    "setting": ["--set", "clipfit.kdweight=2"],
    "option": ["--epoch", "2"],
    "path": ["--scenario", "folder", "--data-dir", "no/such/folder"],
}
# The process ends before its first step; PyTorch is what the command would import first anyway.
FIRST_STEP = """
import os, sys, torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
register_optimizer_step_pre_hook(lambda *_: os._exit(77))
from cl_clipfit.cli.app import main
sys.exit(main(sys.argv[1:]))
"""


def seconds(command: Sequence[str], expected: int) -> float:
    """Return how long a process takes that ends with the expected exit code.

    Raises:
        UserError: it ends otherwise.
    """
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    took = time.perf_counter() - begin
    if done.returncode != expected:
        raise UserError(f"{' '.join(command[:5])}: exit code {done.returncode}: {done.stderr}")
    return took


def measure(repeats: int) -> dict[str, Any]:
    """Time all commands in turns; every value is in seconds, and ratios are to `import torch`."""
    python = sys.executable
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "import torch": ([python, "-c", "import torch"], 0),
            "first_step": ([python, "-c", FIRST_STEP, "--output", folder, "--fresh"], 77),
            **{
                f"mistake: {name}": ([python, "run.py", "--output", folder, *options], 2)
                for name, options in MISTAKES.items()
            },
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(repeats + 1):  # the first turn reads the files from disk
            for name, (command, expected) in commands.items():
                took = seconds(command, expected)
                if turn:
                    times[name].append(took)
    medians = {name: statistics.median(values) for name, values in times.items()}
    unit = medians["import torch"]
    return {"seconds": medians, "ratios": {n: s / unit for n, s in medians.items()}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the medians and their ratios to `import torch`."""
    parser = argparse.ArgumentParser(prog="benchmarks.startup", description=__doc__)
    timing.add_options(parser, repeats=3)
    given = timing.parse(parser, arguments)
    with timing.one_line(parser):
        report = measure(given.repeats)
    timing.show({**report, "machine": timing.machine()}, given.json)


if __name__ == "__main__":
    main()
