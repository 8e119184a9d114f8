"""Time a forward and backward pass of the text tower: open_clip's own, and ours.

    python -m benchmarks.text --model ViT-B-16 --classes 10 100 1000 --repeats 3 --json

What CLIPFit trains in that tower has gradients. Untrained weights: they do not change what a pass
costs. All ways take turns within one process. Runs without Avalanche.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import published, timing
from cl_clipfit.clip.classifier import CLIPClassifier
from cl_clipfit.clip.loading.factory import create_classifier
from cl_clipfit.training.selection import select_text_biases, text_blocks

# The seven that Radford et al. chose for ImageNet, in their notebook on prompt engineering.
ENSEMBLE = (
    "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.",
    "a {} in a video game.", "art of the {}.", "a photo of the small {}.",
)  # fmt: skip
WAYS = ("stock", "ours_fp32", "ours_bf16")
RATIOS = (("stock", "ours_fp32"), ("stock", "ours_bf16"), ("ours_fp32", "ours_bf16"))
STOCK_PROMPTS = 250  # of one pass of the stock tower, whose activations are then let go


class TokenCounter(TorchDispatchMode):
    """Counts values of activation functions, which a tower has between its two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0
        aten = torch.ops.aten
        self._activations = (aten.gelu, aten.silu, aten.sigmoid)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation."""
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket in self._activations:
            self.values += found.numel()
        return found


class Bench:
    """The three towers, and passes of each over the prompts of some classes.

    Args:
        given: the options.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.given, self.device = given, torch.device(given.device)
        self.names = timing.class_names(max(*given.classes, given.ensemble))
        self.clip = published.load(given.model, self.device)
        published.ClipFit(
            self.clip, published.tokenize(given.model, self.names[:1]).to(self.device)
        )
        self.models = {way: self._classifier(way) for way in WAYS[1:]}

    def _classifier(self, way: str) -> CLIPClassifier:
        precision: Any = way.removeprefix("ours_")
        model = create_classifier(f"{self.given.model}:random", self.device, precision)
        model.add_classes(self.names, (timing.TEMPLATE,))
        model.add_classes(self.names[: self.given.ensemble], ENSEMBLE)
        model.train_only(select_text_biases(model.clip))
        return model

    def ways(self, count: int, templates: Sequence[str]) -> dict[str, "Passes"]:
        """Return what is timed for so many classes with these templates."""
        first = len(self.names) if len(templates) > 1 else 0
        labels = range(first, first + count)
        names, model = self.names[:count], self.given.model
        tokens = [published.tokenize(model, names, t).to(self.device) for t in templates]
        found = {"stock": stock_passes(self.clip, torch.stack(tokens, 1))}
        for way, classifier in self.models.items():
            found[way] = Passes(classifier.clip, [partial(classifier.text_features, labels)])
        return found


class Passes:
    """A forward and a backward pass, from one fixed gradient of the features.

    Args:
        clip: whose second feed-forward biases train.
        parts: functions that encode prompts to unit length, one after the other.
    """

    def __init__(self, clip: Any, parts: Sequence[Callable[[], Tensor]]) -> None:
        self.clip, self.parts = clip, parts
        self.trainable = select_text_biases(clip)
        self.gradients: list[Tensor] = []

    def tokens(self) -> float:
        """Return how many tokens pass a block's feed-forward network, the mean over blocks."""
        blocks: list[Any] = text_blocks(self.clip)
        with TokenCounter() as counter:
            for part in self.parts:
                part()
        return counter.values / sum(block.mlp.c_fc.out_features for block in blocks)

    def __call__(self) -> None:
        """Run both passes."""
        for parameter in self.trainable:
            parameter.grad = None
        first = not self.gradients
        for number, part in enumerate(self.parts):
            features = part()
            if first:
                self.gradients.append(torch.randn_like(features))
            features.backward(self.gradients[number])


def stock_passes(clip: Any, tokens: Tensor) -> Passes:
    """Return passes of open_clip's text tower over tokens (K, templates, L).

    It gets `STOCK_PROMPTS` at once: it computes what it would in one pass, with less memory.
    """

    def encode(some: Tensor) -> Tensor:
        features: Tensor = clip.encode_text(some.flatten(0, 1), normalize=True)
        if some.shape[1] > 1:
            features = F.normalize(features.view(*some.shape[:2], -1).mean(1), dim=-1)
        return features

    parts = tokens.split(max(1, STOCK_PROMPTS // tokens.shape[1]))
    return Passes(clip, [partial(encode, part) for part in parts])


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Measure every number of classes; see `main`."""
    bench = Bench(given)
    sizes: dict[str, tuple[int, Sequence[str]]] = {
        str(count): (count, (timing.TEMPLATE,)) for count in given.classes
    }
    if given.ensemble:
        sizes[f"{given.ensemble} x {len(ENSEMBLE)} templates"] = given.ensemble, ENSEMBLE
    found: dict[str, Any] = {}
    for name, (count, templates) in sizes.items():
        ways = bench.ways(count, templates)
        times = timing.take_turns(ways, given.repeats, given.device)
        seconds = timing.medians(times)
        found[name] = {
            "prompts": count * len(templates),
            "tokens": {way: passes.tokens() for way, passes in ways.items()},
            "seconds": seconds,
            "minima": {way: min(values) for way, values in times.items()},
            "ratios": timing.ratios(seconds, RATIOS),
        }
    about = {"model": given.model, "repeats": given.repeats, **timing.machine(given.device)}
    return {**about, "classes": found}


def summary(found: dict[str, Any]) -> Iterator[str]:
    """Yield lines to read."""
    for name, size in found["classes"].items():
        yield f"{name} classes, {size['prompts']} prompts"
        for way, value in size["seconds"].items():
            yield f"  {way:12} {1000 * value:10.1f} ms {size['tokens'][way]:10.0f} tokens a block"
        yield "  " + "  ".join(f"{pair} {value:.2f}" for pair, value in size["ratios"].items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    timing.add_options(parser, model="ViT-B-16", repeats=3, device="auto")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--ensemble", type=int, default=100,
                        help=f"classes with {len(ENSEMBLE)} templates each; 0: none")  # fmt: skip
    given = timing.parse(parser, arguments, "classes")
    if ":" in given.model:
        parser.error("--model takes an architecture alone: weights do not change what a pass costs")
    if given.ensemble < 0:
        parser.error("--ensemble must be 0 or more")
    with timing.one_line(parser):
        found = measure(given)
    timing.show(found, given.json, summary(found))


if __name__ == "__main__":
    main()
