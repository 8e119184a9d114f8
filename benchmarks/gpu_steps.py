"""What `benchmarks.gpu` times: steps of CLIPFit and MERGETUNE, towers, and rows of scores."""

import copy
import functools
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import convert_weights_to_lp
from torch import Tensor

from benchmarks import ours, published, timing
from benchmarks import text as text_bench
from benchmarks.budget import Report
from benchmarks.flops import Matmul, image_tower_flops, tower_matmul
from cl_clipfit.clip.classifier import CLIPClassifier
from cl_clipfit.clip.context import learn_context
from cl_clipfit.clip.preprocess import Preprocess
from cl_clipfit.errors import UserError
from cl_clipfit.runtime.determinism import exact_fp32
from cl_clipfit.runtime.out_of_memory import fits, release
from cl_clipfit.training.selection import select_clipfit

ON_CPU = "torch.compile is timed on a GPU alone"
PEAKS = ("bf16", "fp16", "fp32")
EVALUATED = 256  # images of a batch of evaluation
TEXT_CLASSES = (1, 10)  # prompts of the text tower, in multiples of the classes of a step
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Step = Callable[[], Any]


@functools.cache
def _tokenizer(model: str) -> Any:
    return open_clip.get_tokenizer(model)


class Bench:
    """Models of random weights, and batches of drawn images.

    Args:
        device: where everything is computed.
        classes: of every step, one prompt each.
        matmul: side of the square product that shows the peak.
        seconds: about how long a step is repeated.

    Attributes:
        peak: operations per second of the square product in bf16, once it is measured.
    """

    def __init__(
        self, device: str, classes: int = 100, matmul: int = 8192, seconds: float = 2.0
    ) -> None:
        torch.manual_seed(0)
        self.device, self.side, self.seconds = torch.device(device), matmul, seconds
        if self.cuda and self.device.index is None:  # some functions want to know which one
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.names = timing.class_names(classes)
        self.peak: float | None = None
        self._loaded: dict[str, Any] = {}

    @property
    def cuda(self) -> bool:
        """Whether it measures a GPU."""
        return self.device.type == "cuda"

    def weights(self, model: str) -> Any:
        """Return the open_clip model that all ways share; it stays on the CPU, and frozen."""
        if model not in self._loaded:
            self._loaded[model] = published.load(model).requires_grad_(False)
        return self._loaded[model]

    def stock(self, model: str, dtype: str = "fp32") -> Any:
        """Return a copy on the device; in fp16 as OpenAI's `convert_weights` leaves it."""
        clip = copy.deepcopy(self.weights(model)).to(self.device)
        if dtype == "fp16":
            convert_weights_to_lp(clip, torch.float16)
        return clip

    def ours(self, model: str, precision: Any = "bf16", compiled: bool = False) -> CLIPClassifier:
        """Return a classifier of all classes that shares no weight with another."""
        clip = copy.deepcopy(self.weights(model))
        classifier = CLIPClassifier(clip, _tokenizer(model), None, precision).to(self.device)
        classifier.compiles = compiled
        classifier.add_classes(self.names, (timing.TEMPLATE,))
        return classifier

    def trained(self, model: str, precision: Any = "bf16", compiled: bool = False) -> Any:
        """Return a classifier that trains what CLIPFit trains."""
        classifier = self.ours(model, precision, compiled)
        chosen = select_clipfit(classifier.clip)
        classifier.train_only([*chosen.text, *chosen.image])
        return classifier

    def batch(self, model: str, size: int) -> tuple[Tensor, Tensor]:
        """Return images (size, 3, H, W) as the tower takes them, and labels (size,)."""
        shape = size, 3, *self.weights(model).visual.image_size
        images = torch.randn(shape, device=self.device)
        return images, torch.arange(size, device=self.device) % len(self.names)

    def tokens(self, model: str) -> Tensor:
        """Return the token ids (C, L) of the prompts."""
        return self.prompts(model, self.names)

    def prompts(self, model: str, names: Sequence[str]) -> Tensor:
        """Return the token ids (C, L) of the prompts of other names."""
        ids: Tensor = _tokenizer(model)([timing.TEMPLATE.format(name) for name in names])
        return ids.to(self.device)

    def time(self, make: Callable[[], Step], flops: int = 0) -> dict[str, Any]:
        """Build a step, time it, and let go of it.

        Returns:
            "seconds" (median), "fastest", "calls"; of a GPU "peak_bytes", with weights; with
            `flops`, "flops_per_second" and "share_of_bf16_peak". Or "out_of_memory", if it was.
        """
        result: dict[str, Any] = {}

        def work() -> None:
            if self.cuda:
                torch.cuda.reset_peak_memory_stats(self.device)
            times = timing.time_calls(make(), self.device, self.seconds)
            result.update(seconds=statistics.median(times), fastest=min(times), calls=len(times))
            if self.cuda:
                result["peak_bytes"] = torch.cuda.max_memory_allocated(self.device)

        with exact_fp32():
            if not fits(work):
                result["out_of_memory"] = True
        if self.cuda:
            release()
        if flops and "seconds" in result:
            result["flops_per_second"] = flops / result["seconds"]
            if self.peak:
                result["share_of_bf16_peak"] = result["flops_per_second"] / self.peak
        return result


def matmul(bench: Bench, report: Report) -> None:
    """Report the machine, and what its matrix products reach."""
    report("machine", describe(bench.device))
    for name in PEAKS:
        report(name, _product(bench, name))


def _product(bench: Bench, name: str) -> dict[str, Any]:
    """Time the square product in a type."""
    product = Matmul((bench.side,) * 3, DTYPES[name], bench.device)
    found = bench.time(lambda: product)
    if "seconds" not in found:
        return found
    reached = product.flops * product.calls / found["seconds"]
    if name == "bf16":
        bench.peak = reached
    return {"flops_per_second": reached, "side": bench.side}


def describe(device: torch.device) -> dict[str, Any]:
    """Return what timings depend on."""
    found = {**timing.machine(device), "cuda": torch.version.cuda, "gpus": 0}
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {
            "gpus": torch.cuda.device_count(),
            "capability": f"{about.major}.{about.minor}",
            "memory_bytes": about.total_memory,
            "processors": about.multi_processor_count,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def _peak(bench: Bench) -> None:
    """Measure the bf16 peak if the process that did was another one."""
    if bench.peak is None:
        _product(bench, "bf16")


def clipfit(bench: Bench, report: Report, model: str, size: int) -> None:
    """Time steps of CLIPFit, and a pass of the image tower alone with its share of the peak."""
    _peak(bench)
    images, labels = bench.batch(model, size)
    visual = bench.weights(model).visual
    flops = image_tower_flops(visual, size, class_token_only=True)

    def theirs(dtype: str) -> Step:
        method = published.ClipFit(bench.stock(model, dtype), bench.tokens(model))
        return lambda: method.step(images, labels)

    def step(compiled: bool) -> Step:
        classifier = bench.trained(model, "bf16", compiled)
        take = ours.step(classifier, lambda: ours.clipfit_loss(classifier, images, labels))
        return _noting_compilation(classifier, take, report, "ours_bf16") if compiled else take

    def tower(compiled: bool) -> Step:
        classifier = bench.trained(model, "bf16", compiled)
        return tower_passes(classifier, images)

    report("published_fp16", bench.time(partial(theirs, "fp16")))
    report("ours_bf16", bench.time(partial(step, False), flops))
    report("image_tower_bf16", bench.time(partial(tower, False), flops))
    product = Matmul(tower_matmul(visual, size), torch.bfloat16, bench.device)
    found = bench.time(lambda: product, product.flops * product.calls)
    report("matmul_of_the_tower_bf16", found)
    report("published_fp32", bench.time(partial(theirs, "fp32")))
    _compiled(bench, report, "ours_bf16_compiled", partial(step, True), flops)
    _compiled(bench, report, "image_tower_bf16_compiled", partial(tower, True), flops)


def mergetune(bench: Bench, report: Report, model: str, size: int) -> None:
    """Time steps of MERGETUNE over CoOp, with the images encoded in the step or before it."""
    images, labels = bench.batch(model, size)

    def theirs(dtype: str) -> Step:  # ships with autocast; its weights stay in fp32
        method = published.MergeTune(bench.stock(model), bench.tokens(model), dtype == "fp16")
        return lambda: method.step(images, labels)

    def step(cached: bool, compiled: bool = False) -> Step:
        classifier = bench.ours(model, "bf16", compiled)
        learn_context(classifier, published.CONTEXT_TOKENS, timing.TEMPLATE)
        assert classifier.context is not None
        classifier.train_only([classifier.context])
        with torch.no_grad():
            inputs = classifier.image_features(images) if cached else images
            host = classifier.text_features(normalize=False)
        take = ours.step(classifier, lambda: ours.mergetune_loss(classifier, inputs, labels, host))
        return _noting_compilation(classifier, take, report, "ours_bf16") if compiled else take

    report("published_fp16", bench.time(partial(theirs, "fp16")))
    report("ours_bf16", bench.time(partial(step, False)))
    report("ours_bf16_cached", bench.time(partial(step, True)))
    report("published_fp32", bench.time(partial(theirs, "fp32")))
    _compiled(bench, report, "ours_bf16_compiled", partial(step, False, True))


def _compiled(
    bench: Bench, report: Report, name: str, make: Callable[[], Step], flops: int = 0
) -> None:
    """Time a compiled way, or say why not: a machine may have no compiler."""
    try:
        report(name, bench.time(make, flops) if bench.cuda else {"skipped": ON_CPU})
    except UserError as error:
        report(name, {"failed": str(error)})


def _noting_compilation(model: CLIPClassifier, take: Step, report: Report, name: str) -> Step:
    """Report how long the compiler takes in the first step, which warms up."""
    take()
    report(f"{name}_compile_seconds", model.compile_seconds)
    return take


def tower_passes(model: CLIPClassifier, images: Tensor) -> Step:
    """Return a forward pass of the image tower, and a backward pass of one fixed gradient."""
    norms = [p for p in model.clip.visual.parameters() if p.requires_grad]
    gradient = torch.randn(len(images), model.clip.visual.output_dim, device=images.device)

    def passes() -> None:
        for parameter in norms:
            parameter.grad = None
        model.image_features(images).backward(gradient)

    return passes


def text(bench: Bench, report: Report, model: str) -> None:
    """Time a forward and backward pass of the text tower."""
    for factor in TEXT_CLASSES:
        names = timing.class_names(len(bench.names) * factor)
        tokens = bench.prompts(model, names)[:, None]

        def stock(tokens: Tensor = tokens) -> Step:
            clip = bench.stock(model)
            published.ClipFit(clip, bench.tokens(model)[:1])  # its biases train
            return text_bench.stock_passes(clip, tokens)

        def packed(names: Sequence[str] = names) -> Step:
            classifier = bench.trained(model)
            more = names[len(classifier.class_names) :]
            classifier.add_classes(more, (timing.TEMPLATE,))
            return text_bench.Passes(classifier.clip, [classifier.text_features])

        report(f"published_{len(names)}", bench.time(stock))
        report(f"ours_bf16_{len(names)}", bench.time(packed))


def evaluate(bench: Bench, report: Report, model: str) -> None:
    """Report images per second of a batch of test images (uint8), scored against all classes."""
    size = min(EVALUATED, 8 * len(bench.names))
    shape = size, 3, *bench.weights(model).visual.image_size
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=bench.device)

    def stock(dtype: str) -> Step:
        clip = bench.stock(model, dtype)
        preprocess = Preprocess.of(clip)
        with torch.no_grad():
            text = F.normalize(clip.encode_text(bench.tokens(model)), dim=-1)

        @torch.no_grad()
        def score() -> Tensor:
            pixels = preprocess(images).to(DTYPES[dtype])
            return clip.logit_scale.exp() * clip.encode_image(pixels, normalize=True) @ text.T

        return score

    def packed(precision: str) -> Step:
        classifier = bench.ours(model, precision)

        @torch.no_grad()
        def score() -> Tensor:
            return classifier(images)

        return score

    ways = {"stock_fp32": partial(stock, "fp32"), "stock_fp16": partial(stock, "fp16"),
            "ours_fp32": partial(packed, "fp32"), "ours_bf16": partial(packed, "bf16")}  # fmt: skip
    for name, make in ways.items():
        found = bench.time(make)
        if "seconds" in found:
            found["images_per_second"] = size / found["seconds"]
        report(name, found)
