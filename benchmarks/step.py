"""Time training steps of CLIPFit and MERGETUNE: the released code's, ours, and what bounds ours.

    python -m benchmarks.step --model ViT-B-16 --classes 100 --batch-size 16 --repeats 5 --json

Untrained weights and drawn images: they do not change what a step costs. All parts take turns
within one process; peak memory is that of a further process for each kind of step. Runs without
Avalanche.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import ours, published, timing
from benchmarks.flops import Matmul, image_tower_flops, tower_matmul
from cl_clipfit.clip.classifier import CLIPClassifier
from cl_clipfit.clip.context import learn_context
from cl_clipfit.clip.loading.factory import create_classifier
from cl_clipfit.training.selection import select_clipfit

KINDS = (
    "published", "ours_fp32", "ours_bf16",
    "published_mergetune", "ours_mergetune_fp32", "ours_mergetune_bf16",
    "ours_mergetune_cached_fp32", "ours_mergetune_cached_bf16",
)  # fmt: skip
TOWERS = ("image_tower_fp32", "image_tower_bf16", "stock_image_tower")
MATMULS = ("matmul_square_fp32", "matmul_square_bf16", "matmul_tower_fp32", "matmul_tower_bf16")
PARTS = (*KINDS, *TOWERS, *MATMULS)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RATIOS = (
    ("published", "ours_fp32"), ("published", "ours_bf16"), ("published", "stock_image_tower"),
    ("ours_fp32", "image_tower_fp32"), ("ours_bf16", "image_tower_bf16"),
    ("ours_fp32", "ours_bf16"),
    ("stock_image_tower", "image_tower_fp32"), ("stock_image_tower", "image_tower_bf16"),
    *(("published_mergetune", kind) for kind in KINDS[4:]),
)  # fmt: skip
Step = Callable[[], None]


class Bench:
    """Builds parts, so that a process holds no more than what it runs.

    Args:
        given: the options.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.given, self.device = given, torch.device(given.device)
        self.outline = published.load(given.model, "meta").visual
        self.names = timing.class_names(given.classes)
        self.labels = (torch.arange(given.batch_size) % given.classes).to(self.device)
        size = given.batch_size, 3, *self.outline.image_size
        self.images = torch.randn(size, device=self.device)
        self._models: dict[tuple[str, str], Any] = {}

    def build(self, part: str) -> Step:
        """Return a function that does what is timed of a part."""
        kind, _, precision = part.rpartition("_")
        if part in ("published", "published_mergetune"):
            return self._published(part)
        if kind == "ours":
            model = self._ours("clipfit", precision)
            return ours.step(model, lambda: ours.clipfit_loss(model, self.images, self.labels))
        if kind.startswith("ours_mergetune"):
            return self._mergetune(precision, cached="cached" in kind)
        if kind == "image_tower":
            model = self._ours("clipfit", precision)
            return self._tower(model.clip.visual, model.image_features)
        if part == "stock_image_tower":
            clip = self._stock("clipfit")
            tokens = published.tokenize(self.given.model, self.names[:1]).to(self.device)
            published.ClipFit(clip, tokens)  # LayerNorms train
            return self._tower(clip.visual, lambda x: clip.encode_image(x, normalize=True))
        square = (self.given.matmul,) * 3
        sizes = square if kind == "matmul_square" else self._tower_matmul()
        return Matmul(sizes, DTYPES[precision], self.device)

    def _tower_matmul(self) -> tuple[int, int, int]:
        return tower_matmul(self.outline, self.given.batch_size)

    def _stock(self, use: str, dtype: str = "fp32") -> Any:
        """Return an open_clip model; parts with the same use and type share one."""
        if (use, dtype) not in self._models:
            model = published.load(self.given.model, self.device, DTYPES[dtype])
            self._models[use, dtype] = model
        return self._models[use, dtype]

    def _ours(self, use: str, precision: Any) -> CLIPClassifier:
        """Return a classifier of all classes, with what trains in CLIPFit or in CoOp."""
        key = f"ours {use}", precision
        if key not in self._models:
            model = create_classifier(f"{self.given.model}:random", self.device, precision)
            model.add_classes(self.names, (timing.TEMPLATE,))
            if use == "clipfit":
                chosen = select_clipfit(model.clip)
                model.train_only([*chosen.text, *chosen.image])
            else:
                learn_context(model, published.CONTEXT_TOKENS, timing.TEMPLATE)
                assert model.context is not None
                model.train_only([model.context])
            self._models[key] = model
        return self._models[key]

    def _published(self, part: str) -> Step:
        dtype = self.given.published_dtype
        tokens = published.tokenize(self.given.model, self.names).to(self.device)
        method: Any
        if part == "published":
            method = published.ClipFit(self._stock("clipfit", dtype), tokens)
        else:  # ships with autocast; its weights stay in fp32
            method = published.MergeTune(self._stock("mergetune"), tokens, dtype == "fp16")
        return lambda: method.step(self.images, self.labels)

    def _mergetune(self, precision: str, cached: bool) -> Step:
        model, images = self._ours("mergetune", precision), self.images
        with torch.no_grad():
            images = model.image_features(images) if cached else images
            host_text = model.text_features(normalize=False)
        return ours.step(model, lambda: ours.mergetune_loss(model, images, self.labels, host_text))

    def _tower(self, visual: Any, encode: Callable[[Tensor], Tensor]) -> Step:
        """Return a forward pass, and a backward pass of one fixed gradient."""
        norms = [p for p in visual.parameters() if p.requires_grad]
        gradient = torch.randn(len(self.images), visual.output_dim, device=self.device)

        def passes() -> None:
            for parameter in norms:
                parameter.grad = None
            encode(self.images).backward(gradient)

        return passes


def take_memory(given: argparse.Namespace, kinds: Sequence[str]) -> dict[str, int]:
    """Return the peak bytes of a process for each kind of step."""
    options = []
    for name in ("model", "classes", "batch_size", "threads", "device", "published_dtype"):
        options += [f"--{name.replace('_', '-')}", str(getattr(given, name))]
    return {k: timing.peak_of_child("benchmarks.step", "--memory-of", k, *options) for k in kinds}


def print_memory(given: argparse.Namespace) -> None:
    """Take two steps of a kind and print the peak of this process."""
    step = Bench(given).build(given.memory_of)
    if torch.device(given.device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(given.device)  # of a step, not of loading
    step()
    step()
    print(timing.peak_bytes(given.device))


def speeds(bench: Bench, seconds: dict[str, float], steps: dict[str, Step]) -> dict[str, Any]:
    """Return operations a second: of products, and of image towers with their share of those."""
    products = {
        name: step.flops / seconds[name] for name, step in steps.items() if isinstance(step, Matmul)
    }
    found: dict[str, Any] = dict(products)
    visual, batch_size = bench.outline, bench.given.batch_size
    for name in (tower for tower in TOWERS if tower in seconds):
        stock = name == "stock_image_tower"
        by_token = not stock and visual.pool_type == "tok"  # as cl_clipfit/clip/vision.py
        count = image_tower_flops(visual, batch_size, by_token)
        precision = "fp32" if stock else name.rpartition("_")[2]
        speed = count / seconds[name]
        found[name] = {"flops": count, "flops_per_second": speed}
        alike = {n: value for n, value in products.items() if n.endswith(precision)}
        if alike:
            found[name]["share_of_best_matmul"] = speed / max(alike.values())
        if f"matmul_square_{precision}" in alike:
            share = speed / alike[f"matmul_square_{precision}"]
            found[name]["share_of_square_matmul"] = share
    return found


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Measure the parts that are asked for; see `main`."""
    chosen = given.only or (*PARTS, "memory")
    wanted = [part for part in chosen if part not in given.skip]
    kinds = [k for k in KINDS if k in (wanted if set(chosen) - {"memory"} else KINDS)]
    # Memory first: a process that is started begins with the peak of the one that starts it.
    peaks = take_memory(given, kinds) if "memory" in wanted else {}
    bench = Bench(given)
    steps = {part: bench.build(part) for part in PARTS if part in wanted}
    times = timing.take_turns(steps, given.repeats, given.device)
    for name, step in steps.items():
        if isinstance(step, Matmul):
            times[name] = [value / step.calls for value in times[name]]
    seconds = timing.medians(times)
    minima = {name: min(values) for name, values in times.items()}
    options = ("model", "classes", "batch_size", "repeats", "published_dtype", "matmul")
    return {
        **{name: getattr(given, name) for name in options},
        **timing.machine(given.device),
        "seconds": seconds,
        "minima": minima,
        "ratios": timing.ratios(seconds, RATIOS),
        "ratios_of_minima": timing.ratios(minima, RATIOS),
        "speed": speeds(bench, seconds, steps),
        "peak_bytes": peaks,
        "memory_ratios": timing.ratios(peaks, RATIOS),
    }


def summary(found: dict[str, Any]) -> Iterator[str]:
    """Yield lines to read."""
    for name, value in found["seconds"].items():
        peak = found["peak_bytes"].get(name)
        memory = f"  peak {peak / 2**20:8.0f} MiB" if peak else ""
        yield f"{name:28} {1000 * value:10.1f} ms{memory}"
    for name, value in found["ratios"].items():
        memory = found["memory_ratios"].get(name)
        yield f"{name:48} {value:6.2f}" + (f"  memory {memory:6.2f}" if memory else "")
    for name, value in found["speed"].items():
        if isinstance(value, float):
            yield f"{name:28} {value / 1e9:10.0f} GFLOP/s"
            continue
        best = value.get("share_of_best_matmul")
        share = f"  {best:.0%} of the best matrix product" if best else ""
        yield f"{name:28} {value['flops_per_second'] / 1e9:10.0f} GFLOP/s{share}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    timing.add_options(parser, model="ViT-B-16", batch_size=16, repeats=5, device="auto")
    parser.add_argument("--classes", type=int, default=100, help="prompts, one of each class")
    choices = (*PARTS, "memory")
    parser.add_argument("--only", nargs="+", choices=choices, help="measure these parts alone")
    parser.add_argument("--skip", nargs="+", choices=choices, default=[], help="leave these out")
    parser.add_argument("--matmul", type=int, default=4096, help="side of the square product")
    parser.add_argument("--published-dtype", choices=["fp32", "fp16"], default="fp32",
                        help="fp16, on a GPU: as both ship")  # fmt: skip
    parser.add_argument("--memory-of", choices=KINDS, help=argparse.SUPPRESS)
    given = timing.parse(parser, arguments, "classes", "matmul")
    if ":" in given.model:
        parser.error("--model takes an architecture alone: weights do not change what a step costs")
    if given.published_dtype == "fp16" and torch.device(given.device).type == "cpu":
        parser.error("--published-dtype fp16 needs a GPU: the released code has no other")
    with timing.one_line(parser):
        if given.memory_of:
            print_memory(given)
            return
        found = measure(given)
    timing.show(found, given.json, summary(found))


if __name__ == "__main__":
    main()
