"""The speed benchmarks at small sizes, as one JSON object: `make bench`.

    python -m benchmarks.quick > bench.json

Each is a process of its own, as `python -m benchmarks.NAME` runs it; docs/performance.md explains
them and reports larger sizes. Ratios can be compared between machines, seconds cannot.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("--model", "ViT-B-32", "--repeats", "1", "--json")
BENCHMARKS = {
    "step": (
        *SMALL, "--classes", "10", "--batch-size", "8", "--matmul", "2048",
        "--only", "published", "ours_fp32", "image_tower_fp32", "matmul_square_fp32",
    ),
    "evaluate": (*SMALL, "--classes", "10", "--images", "8", "--batch-size", "8"),
    "mixed_batch": (*SMALL, "--tasks", "4", "--batch-size", "16"),
    "preprocess": (*SMALL, "--batch-size", "16"),
    "gpu": ("--tiny", "--json"),
}  # fmt: skip


def measure(benchmarks: Mapping[str, Sequence[str]] = BENCHMARKS) -> dict[str, Any]:
    """Run benchmarks one after another and return what each prints, by name."""
    found = {}
    for name, options in benchmarks.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *options]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
