"""MMA: its features and gradients against open_clip's own forward with hooks."""

from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cl_clipfit import CLIPClassifier, CLIPStrategy, Recipe, Source, build_scenario
from cl_clipfit.clip.encoders.adapters import attach_adapters, block_widths
from cl_clipfit.errors import UserError
from cl_clipfit.strategies.mma import Bottleneck, Mma, MmaOptions
from tests.support import hooked
from tests.support.published import build

Build = Callable[..., CLIPClassifier]
TOWERS = ("visual.transformer", "transformer")


def make(tiny: Build, source: Source, cls: type[CLIPStrategy] = Mma, **options: Any) -> Any:
    torch.manual_seed(0)
    return cls(
        model=tiny(), class_names=source.class_names, recipe=Recipe(epochs=1, batch_size=8, lr=0.1),
        options=MmaOptions(**{"blocks": 2, "width": 5, "scale": 0.5, **options}),
    )  # fmt: skip


def reference(weights: dict[str, Tensor], scale: float) -> dict[str, hooked.Beside]:
    """Return what MMA adds to the blocks of the tiny towers, as functions of named weights."""

    def beside(name: str) -> hooked.Beside:
        i = name.rsplit(".", 1)[1]

        def add(block: Any, rows: Tensor, _: Tensor) -> Tensor:
            x = F.layer_norm(rows, rows.shape[-1:], block.ln_1.weight, block.ln_1.bias)
            for part, key in (("down", name), ("shared", f"{TOWERS[0]}.resblocks.{i}")):
                w, b = (weights[f"clip.{key}.adapter.{part}.{p}"] for p in ("weight", "bias"))
                x = F.linear(x, w, b).clamp(min=0)
            w, b = (weights[f"clip.{name}.adapter.up.{p}"] for p in ("weight", "bias"))
            return F.linear(x, w, b) * scale

        return add

    return {n: beside(n) for n in (f"{t}.resblocks.{i}" for t in TOWERS for i in range(2))}


@pytest.mark.parametrize("recompute", [False, True])
def test_features_and_gradients_are_those_of_hooks(
    tiny: Build, source: Source, recompute: bool
) -> None:
    strategy = make(tiny, source)
    strategy.select()
    model = strategy.model
    model.recompute = recompute
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in strategy.selection.values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draws))
    weights = {n: p.detach().clone().requires_grad_() for n, p in strategy.selection.items()}
    assert len(weights) == 2 * (2 * 4 + 2)
    images, stock = source.test.images, tiny()
    found = model.image_features(images), model.text_features()
    tokens = hooked.tokens_of(model)
    expected = hooked.features(stock, images, tokens, reference(weights, 0.5))
    for given, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(given, wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(given.norm(dim=1), torch.ones(len(given)))
    mixed = torch.randn(16, 16, generator=draws)
    for image, text in (found, expected):
        (image @ mixed @ text.T).square().sum().backward()
    for name, value in weights.items():  # as if there were no scale
        assert value.grad is not None
        torch.testing.assert_close(
            strategy.selection[name].grad, value.grad / 0.5, rtol=1e-3, atol=1e-4
        )
    with torch.no_grad():
        rows = model.image_rows(images, 2)
        torch.testing.assert_close(rows[:, :16], found[0].detach(), rtol=0, atol=1e-5)
        assert not torch.allclose(found[0], stock.image_features(images), atol=1e-3)


def test_the_first_step_starts_at_zero_shot_and_trains_both_towers(
    tiny: Build, source: Source
) -> None:
    strategy, stock = make(tiny, source), tiny()
    with torch.no_grad():
        start = strategy.score_all(source.test.images)
        zero_shot = (
            stock.image_features(source.test.images) @ strategy.model.zero_shot_text_features.T
        )
    torch.testing.assert_close(start, zero_shot * stock.logit_scale, rtol=1e-4, atol=1e-4)
    strategy.train(build_scenario("s", source, tasks=3).benchmark.train_stream[0], eval_streams=[])
    for name, value in strategy.selection.items():
        assert not torch.equal(value, strategy.model.pretrained_values[name]), name
    assert not torch.allclose(strategy.score_all(source.test.images), start, atol=1e-3)


def test_cached_text_features_follow_the_shared_projection(tiny: Build, source: Source) -> None:
    strategy = make(tiny, source)
    strategy.select()
    strategy.model.requires_grad_(False)
    with torch.no_grad():
        for adapter in strategy.adapters[1]:
            adapter.up.weight.copy_(torch.eye(16, 5))
        before = strategy.model.text_features()
        strategy.adapters[0][0].shared.bias.add_(1.0)
        assert not torch.allclose(strategy.model.text_features(), before, atol=1e-4)


def test_towers_that_would_not_run_adapters_are_refused(tiny: Build, source: Source) -> None:
    model = tiny()
    model.clip.visual.ln_post.register_forward_hook(lambda *_: None)  # a hook alone changes nothing
    assert len(block_widths(model.clip)[0]) == 2
    model.clip.visual.transformer.register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match="need a ViT and a causal text tower of open_clip"):
        Mma(model=model, class_names=source.class_names)
    strategy = make(tiny, source)
    with pytest.raises(ValueError, match="already has adapters"):
        attach_adapters(strategy.model.clip, *strategy.adapters)


@pytest.mark.parametrize(("depth", "blocks"), [(12, 8), (2, 1)])
def test_two_thirds_of_the_blocks_have_adapters(depth: int, blocks: int) -> None:
    strategy: Any = object.__new__(Mma)
    strategy.options = MmaOptions()
    image, text = strategy.new_adapters([24] * 2 * depth, [16] * depth)
    assert len(image) == len(text) == blocks


def test_the_published_number_of_parameters() -> None:
    clip: Any = build()
    assert isinstance(clip, open_clip.CLIP)
    strategy: Any = object.__new__(Mma)
    strategy.options = MmaOptions()
    strategy.adapters = strategy.new_adapters([768] * 12, [512] * 12)
    assert all(isinstance(a, Bottleneck) for tower in strategy.adapters for a in tower)
    assert sum(p.numel() for p in strategy.trainable()) == 674_560
