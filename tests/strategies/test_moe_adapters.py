"""MoE-Adapters: features against open_clip's own forward with hooks, gates and noise by hand."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_clipfit import CLIPClassifier, Recipe, Source, build_scenario
from cl_clipfit.strategies.moe_adapters import Mixture, MoeAdapters, MoeOptions
from tests.support import hooked

Build = Callable[..., CLIPClassifier]
BLOCKS = [
    f"{tower}.resblocks.{i}" for tower in ("visual.transformer", "transformer") for i in (0, 1)
]


def make(tiny: Build, source: Source, **options: Any) -> MoeAdapters:
    torch.manual_seed(0)
    return MoeAdapters(
        model=tiny(), class_names=source.class_names, recipe=Recipe(epochs=1, batch_size=8, lr=0.1),
        options=MoeOptions(**{"width": 5, "scale": 0.5, **options}),
    )  # fmt: skip


def beside(weights: dict[str, Tensor], name: str, top: int) -> hooked.Beside:
    """Return what the mixture of a block adds: the sum over experts of one image at a time."""

    def add(_: Any, __: Tensor, attended: Tensor) -> Tensor:
        w = {
            n.split(".adapter.")[1]: t for n, t in weights.items() if n.startswith(f"clip.{name}.")
        }
        images = []
        for x in attended:
            scores = x[0] @ w["router"]
            kept = scores.argsort(descending=True)[:top]
            total = torch.zeros_like(x)
            for e in kept.tolist():
                part = slice(5 * e, 5 * (e + 1))  # the rows and columns of an expert
                inner = F.relu(x @ w["down.weight"][part].T + w["down.bias"][part])
                output = inner @ w["up.weight"][:, part].T + w["bias"][e]
                total = total + scores[e].exp() / scores[kept].exp().sum() * output
            images.append(0.5 * total)
        return torch.stack(images)

    return add


def test_features_and_gradients_are_those_of_hooks(tiny: Build, source: Source) -> None:
    for experts, top in ((2, 2), (3, 2)):
        strategy = make(tiny, source, experts=experts, top=top)
        strategy.select()
        model, draws = strategy.model, torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in strategy.selection.values():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draws))
        weights = {n: p.detach().clone().requires_grad_() for n, p in strategy.selection.items()}
        hooks = {name: beside(weights, name, top) for name in BLOCKS}
        images = source.test.images[:6]
        found = model.image_features(images), model.text_features()
        expected = hooked.features(tiny(), images, hooked.tokens_of(model), hooks)
        mixed = torch.randn(16, 16, generator=draws)
        for given, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(given, wanted, rtol=0, atol=1e-5)
        for image, text in (found, expected):
            (image @ mixed @ text.T).square().sum().backward()
        for name, value in weights.items():
            given = strategy.selection[name].grad
            assert (given is None) == name.endswith("noise")
            if given is not None and value.grad is not None:
                torch.testing.assert_close(given, value.grad, rtol=1e-3, atol=1e-4)


def test_noise_and_dropout_are_drawn_in_steps_alone(tiny: Build, source: Source) -> None:
    strategy = make(tiny, source)
    mixture = strategy.adapters[0][0]
    assert isinstance(mixture, Mixture)
    first = torch.randn(4, 32)
    with torch.no_grad():
        mixture.noise.copy_(torch.randn(32, 2))
        mixture.router.copy_(torch.randn(32, 2))
    quiet = mixture.gates(first)
    assert torch.equal(quiet, mixture.gates(first))
    with strategy.step_weights():
        torch.manual_seed(5)
        noisy = mixture.gates(first)
    torch.manual_seed(5)
    spread = (1 + (first @ mixture.noise).exp()).log() + 0.01
    torch.testing.assert_close(
        noisy, (first @ mixture.router + torch.randn(4, 2) * spread).softmax(1)
    )
    assert torch.equal(quiet, mixture.gates(first))


def test_a_task_trains_every_parameter(tiny: Build, source: Source) -> None:
    strategy = make(tiny, source)
    with torch.no_grad():
        start = strategy.score_all(source.test.images)
    zero_shot = tiny()
    zero_shot.add_classes(list(source.class_names), strategy.templates)
    with torch.no_grad():
        torch.testing.assert_close(start, zero_shot(source.test.images), rtol=1e-4, atol=1e-4)
    strategy.train(build_scenario("s", source, tasks=3).benchmark.train_stream[0], eval_streams=[])
    for name, value in strategy.selection.items():
        assert not torch.equal(value, strategy.model.pretrained_values[name]), name


def test_the_published_number_of_parameters() -> None:
    strategy: Any = object.__new__(MoeAdapters)
    strategy.options = MoeOptions()
    strategy.adapters = strategy.new_adapters([768] * 12, [512] * 12)
    # About 4 million, as users count, not the 13.35 million that MG-CLIP's paper says.
    assert sum(p.numel() for p in strategy.trainable()) == 4_027_392
