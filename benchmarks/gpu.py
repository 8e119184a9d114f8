"""Measure one machine's GPU within eight minutes: the published steps, ours, and what guards them.

    python -m benchmarks.gpu --json > gpu.json
    python -m benchmarks.gpu --tiny --json          # the same in little, also on a CPU

It needs torch and open_clip alone, neither Avalanche nor a data set nor a network: weights are
random, which costs what trained ones cost. Parts run in order of importance, each with a cap
(`benchmarks/budget.py`); what was skipped, cut off or failed is in the result. What the parts do is
in `benchmarks/gpu_steps.py` and `benchmarks/gpu_checks.py`.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.budget import Part, measure_parts

SECONDS = 450.0  # of eight minutes, so that the answer is there before they are over
MODELS = ("ViT-B-16", "ViT-L-14")
BATCHES = (64, 256)
CUBLAS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # must be set before cuBLAS starts, to repeat bits
# What the numbers should reach: of two ways of a part, how many times as fast is the second; and
# the share of the bf16 matrix product.
AIM_SPEEDUP = 2.5, "published_fp16", "ours_bf16"
AIM_SHARE = 0.40


def plan(models: Sequence[str], batches: Sequence[int]) -> list[Part]:
    """Return the parts in order of importance; the first model and batch size matter most.

    Example:
        >>> [part.name for part in plan(["mini"], [4])][:3]
        ['matmul', 'clipfit:mini:4', 'memory_retry:mini']
    """
    first, small = models[0], batches[0]
    parts = [Part("matmul", 30), Part(f"clipfit:{first}:{small}", 80)]
    parts += [Part(f"clipfit:{model}:{small}", 90) for model in models[1:]]
    parts += [Part(f"memory_retry:{first}", 45), Part(f"nan_watch:{first}", 30)]
    parts += [Part(f"determinism:{first}", 40), Part("all_reduce", 60)]
    parts += [Part(f"mergetune:{first}:{small}", 60)]
    parts += [Part(f"evaluate:{model}", 35) for model in models]
    parts += [Part(f"text:{model}", 45) for model in models]
    parts += [Part(f"clipfit:{model}:{size}", 80) for size in batches[1:] for model in models]
    parts += [Part(f"mergetune:{model}:{small}", 60) for model in models[1:]]
    parts += [Part(f"mergetune:{model}:{size}", 60) for size in batches[1:] for model in models]
    return parts


def command(given: argparse.Namespace, parts: Sequence[Part], seconds: float) -> list[str]:
    """Return the command of the process that measures."""
    names = [f"{part.name}={part.cap}" for part in parts]
    options = ["--device", given.device, "--classes", str(given.classes)]
    options += ["--matmul", str(given.matmul), "--seconds", f"{seconds:.1f}"]
    options += ["--each", str(given.each), "--threads", str(given.threads)]
    return [sys.executable, "-m", "benchmarks.gpu_parts", *options, *names]


def ratios(found: Mapping[str, float]) -> dict[str, float]:
    """Return how many times as long each published way takes as each of ours."""
    published = [way for way in found if way.startswith("published")]
    return {
        f"{a}/{b}": found[a] / found[b] for a in published for b in found if b.startswith("ours")
    }


def summarise(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the speedups, shares of the bf16 peak, the aims, and what is missing."""
    speedups: dict[str, Any] = {}
    shares: dict[str, Any] = {}
    for name, part in parts.items():
        ways = {k: v for k, v in part["found"].items() if isinstance(v, dict) and "seconds" in v}
        if name.startswith(("clipfit", "mergetune", "text")):
            speedups[name] = ratios({way: value["seconds"] for way, value in ways.items()})
        for way, value in ways.items():
            if share := value.get("share_of_bf16_peak"):
                shares[f"{name} {way}"] = share
    wanted, slow, fast = AIM_SPEEDUP
    steps = {n: s[f"{slow}/{fast}"] for n, s in speedups.items() if f"{slow}/{fast}" in s}
    return {
        "times_as_fast": speedups,
        "share_of_bf16_peak": shares,
        "aims": {
            f"CLIPFit step, {slow}/{fast}": {
                "wanted": wanted,
                "measured": {n: v for n, v in steps.items() if n.startswith("clipfit")},
            },
            "share of the bf16 peak": {
                "wanted": AIM_SHARE,
                "measured": {n: v for n, v in shares.items() if "image_tower" in n},
            },
        },
        "not_done": {
            name: f"{part['status']}: {part.get('why', '')}"
            for name, part in parts.items()
            if part["status"] != "done"
        },
    }


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Have every part measured that there is time for."""
    begin = time.monotonic()
    chosen = [p for p in plan(given.models, given.batches) if _wanted(p.name, given.only)]

    def say(line: str) -> None:
        told = json.loads(line)
        if told["event"] != "found":
            about = f"{told.get('part', '')} {told['event']} {told.get('why', '')}"
            print(f"{time.monotonic() - begin:6.1f} s  {about}", file=sys.stderr, flush=True)

    parts = measure_parts(
        lambda left, seconds: command(given, left, seconds), chosen, given.seconds, CUBLAS, say
    )
    machine = parts.get("matmul", {}).get("found", {}).get("machine", {})
    options = ("models", "batches", "classes", "matmul", "seconds")
    return {
        **{name: getattr(given, name) for name in options},
        "machine": machine,
        "environment": CUBLAS,
        "seconds_taken": time.monotonic() - begin,
        "summary": summarise(parts),
        "parts": parts,
    }


def _wanted(name: str, only: Sequence[str] | None) -> bool:
    return not only or name == "matmul" or name.split(":")[0] in only


def summary(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines to read."""
    for name, part in found["parts"].items():
        yield f"{name}: {part['status']} {part.get('why', '')}"
        for way, value in part["found"].items():
            if isinstance(value, dict) and "seconds" in value:
                peak = (
                    f"  peak {value['peak_bytes'] / 2**20:8.0f} MiB"
                    if "peak_bytes" in value
                    else ""
                )
                yield f"  {way:32} {1000 * value['seconds']:10.2f} ms{peak}"
            elif way != "machine":
                yield f"  {way}: {value}"
    for name, aim in found["summary"]["aims"].items():
        yield f"{name}: wanted {aim['wanted']}, measured {aim['measured']}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", help="architectures of open_clip with a ViT")
    parser.add_argument("--batches", nargs="+", type=int, help="images of a step")
    parser.add_argument("--only", nargs="+", help="parts, by the word before the colon")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto")
    parser.add_argument("--threads", type=int, default=0, help="0: as PyTorch chooses")
    parser.add_argument("--tiny", action="store_true", help="the bundled mini CLIP, in seconds")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    given = parser.parse_args(arguments)
    sizes = (["mini"], [2]) if given.tiny else (list(MODELS), list(BATCHES))
    given.models, given.batches = given.models or sizes[0], given.batches or sizes[1]
    given.classes, given.matmul = (5, 64) if given.tiny else (100, 8192)
    given.each = 0.02 if given.tiny else 2.0
    if given.seconds <= 0 or min(given.batches) < 2:
        parser.error("--seconds must be above 0, and --batches 2 or more")
    found = measure(given)
    if given.json:
        print(json.dumps(found, indent=1))
    else:
        print("\n".join(summary(found)))


if __name__ == "__main__":
    main()
