"""SSF: the folded tower equals one with a scale and a shift after every operation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_clipfit import CLIPClassifier, Recipe, Source, UserError, build_scenario
from cl_clipfit.strategies.ssf import Ssf
from tests.support.published import build, chosen

Build = Callable[..., CLIPClassifier]


class Kept(Ssf):
    """Keeps the factors of the last task."""

    def after_task(self) -> None:
        self.last = {name: factor.detach() for name, factor in self.factors.items()}
        super().after_task()


def scaled_tower(visual: Any, pixels: Tensor, factors: dict[str, Tensor]) -> Tensor:
    """Encode images by open_clip's ViT in plain PyTorch, with SSF after every operation."""

    def ssf(x: Tensor, site: str, suffix: str = ".weight") -> Tensor:
        name = f"clip.visual.{site}{suffix}"
        return x * factors[f"{name}.scale"] + factors[f"{name}.shift"]

    patches = F.conv2d(pixels, visual.conv1.weight, stride=visual.conv1.stride)
    x = ssf(patches.flatten(2).transpose(1, 2), "conv1")
    first = visual.class_embedding.expand(len(x), 1, -1)
    x = ssf(visual.ln_pre(torch.cat([first, x], 1) + visual.positional_embedding), "ln_pre")
    for i, block in enumerate(visual.transformer.resblocks):
        at = f"transformer.resblocks.{i}."
        joint = F.linear(
            ssf(block.ln_1(x), f"{at}ln_1"), block.attn.in_proj_weight, block.attn.in_proj_bias
        )
        joint = ssf(joint, f"{at}attn", ".in_proj_weight")
        heads = joint.unflatten(-1, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + ssf(block.attn.out_proj(mixed), f"{at}attn.out_proj")
        hidden = ssf(block.mlp.c_fc(ssf(block.ln_2(x), f"{at}ln_2")), f"{at}mlp.c_fc")
        x = x + ssf(block.mlp.c_proj(block.mlp.gelu(hidden)), f"{at}mlp.c_proj")
    return F.normalize(ssf(visual.ln_post(x[:, 0]), "ln_post") @ visual.proj, dim=-1)


def test_folded_equals_unfolded(tiny: Build, source: Source) -> None:
    strategy = Kept(
        model=tiny(), class_names=source.class_names, recipe=Recipe(epochs=2, batch_size=8, lr=0.03)
    )
    task = build_scenario("s", source, tasks=3).benchmark.train_stream[0]
    strategy.train(task, eval_streams=[])
    for name, factor in strategy.last.items():
        start = 1.0 if name.endswith("scale") else 0.0
        assert (factor - start).abs().max() > 0.01, name
    images, pristine = source.test.images, tiny()
    with torch.no_grad():
        unfolded = scaled_tower(pristine.clip.visual, pristine.preprocess(images), strategy.last)
        folded = strategy.model.image_features(images)
        assert (folded - pristine.image_features(images)).abs().max() > 0.05
    torch.testing.assert_close(folded, unfolded, rtol=0, atol=1e-5)


def test_steps_are_those_of_plain_pytorch(tiny: Build, source: Source) -> None:
    recipe = Recipe(epochs=3, batch_size=100, lr=0.01, schedule="constant", weight_decay=0.1)
    strategy = Kept(model=tiny(), class_names=source.class_names, recipe=recipe)
    task = build_scenario("s", source, tasks=3).benchmark.train_stream[0]
    strategy.train(task, eval_streams=[])
    model = tiny()
    model.add_classes(list(source.class_names), strategy.templates)
    factors = {
        n: torch.full_like(f, float(n.endswith("scale"))).requires_grad_()
        for n, f in strategy.last.items()
    }
    optimizer = torch.optim.AdamW(factors.values(), 0.01, weight_decay=0.1)
    images = torch.stack([row[0] for row in task.dataset])
    labels = torch.tensor(list(task.dataset.targets))
    for _ in range(3):
        optimizer.zero_grad()
        features = scaled_tower(model.clip.visual, model.preprocess(images), factors)
        F.cross_entropy(model.logits(features, model.text_features([0, 1])), labels).backward()
        optimizer.step()
    worst = max(
        (factors[n] - f).abs().max() for n, f in strategy.last.items() if "in_proj" not in n
    )
    assert worst < 1e-3  # the first step of Adam is 0.01; keys' shifts have no gradient but noise


def test_the_published_number_of_parameters() -> None:
    names, clip = chosen(Ssf, None)
    strategy: Any = object.__new__(Ssf)
    strategy.model = nn.Module()
    strategy.model.clip = clip
    base = {name: clip.get_parameter(name) for name in names}
    factors = strategy.new_factors({f"clip.{name}": value for name, value in base.items()})
    assert sum(f.numel() for f in factors.values()) == 2 * 768 * (3 + 12 * 11) == 207_360


def test_other_towers_are_refused() -> None:
    strategy: Any = object.__new__(Ssf)
    strategy.model = type("Model", (), {"clip": build("RN50")})
    with pytest.raises(UserError, match="choose such a model"):
        strategy._sites()
