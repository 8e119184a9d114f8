"""LoRA: merged weights equal factored layers, and steps equal those of plain PyTorch."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_clipfit import CLIPClassifier, Recipe, Source, build_scenario
from cl_clipfit.strategies.lora import Lora, LoraOptions
from tests.support.published import chosen

Build = Callable[..., CLIPClassifier]


class Kept(Lora):
    """Keeps the factors of the last task."""

    def after_task(self) -> None:
        self.last, self.start = self.factors, self._base
        super().after_task()


def learn(build: Build, source: Source, tasks: int = 1, **recipe: Any) -> tuple[Kept, list[Any]]:
    scenario = build_scenario("s", source, tasks=3)
    strategy = Kept(
        model=build(), class_names=source.class_names, recipe=Recipe(**recipe),
        options=LoraOptions(rank=2, alpha=3.0),
    )  # fmt: skip
    experiences = list(scenario.benchmark.train_stream)[:tasks]
    for experience in experiences:
        strategy.train(experience, eval_streams=[])
    return strategy, experiences


class FactoredAttention(nn.Module):
    """Multi-head attention whose queries, keys and values are two layers: x W' + s (x A') B'."""

    def __init__(self, attention: Any, down: Tensor, up: Tensor, scale: float) -> None:
        super().__init__()
        self.attention, self.down, self.up, self.scale = attention, down, up, scale

    def forward(self, x: Tensor, *_: Any, attn_mask: Any = None, **__: Any) -> tuple[Tensor, None]:
        old = self.attention
        width, heads = x.shape[-1], old.num_heads
        parts = []
        for i, (weight, bias) in enumerate(
            zip(old.in_proj_weight.chunk(3), old.in_proj_bias.chunk(3), strict=True)
        ):
            y = x @ weight.T + bias + self.scale * (x @ self.down[i].T) @ self.up[i].T
            parts.append(y.unflatten(-1, (heads, width // heads)).transpose(1, 2))
        mixed = F.scaled_dot_product_attention(*parts, attn_mask=attn_mask)
        return old.out_proj(mixed.transpose(1, 2).flatten(2)), None


def test_merged_equals_unmerged(tiny: Build, source: Source) -> None:
    strategy, _ = learn(tiny, source, epochs=3, batch_size=8, lr=0.02)
    unmerged = tiny()
    towers = {
        "transformer": unmerged.clip.transformer,
        "visual.transformer": unmerged.clip.visual.transformer,
    }
    for prefix, tower in towers.items():
        for i, block in enumerate(tower.resblocks):
            key = f"clip.{prefix}.resblocks.{i}.attn.in_proj_weight"
            down, up = (strategy.last[f"{key}.{f}"].detach() for f in "AB")
            assert up.abs().max() > 0.01
            block.attn = FactoredAttention(block.attn, down, up, 3.0 / 2)
    pixels, model = unmerged.preprocess(source.test.images), strategy.model
    tokens = torch.cat(list(model._tokens))
    with torch.no_grad():
        torch.testing.assert_close(
            F.normalize(unmerged.clip.encode_image(pixels), dim=-1),
            model.image_features(source.test.images), rtol=0, atol=1e-5,
        )  # fmt: skip
        torch.testing.assert_close(
            F.normalize(unmerged.clip.encode_text(tokens), dim=-1),
            model.text_features(), rtol=0, atol=1e-5,
        )  # fmt: skip
        moved = model.text_features() - model.zero_shot_text_features
    assert moved.abs().max() > 0.01


def test_steps_are_those_of_plain_pytorch(tiny: Build, source: Source) -> None:
    recipe: Any = {"epochs": 2, "batch_size": 100, "lr": 0.01, "weight_decay": 0.1}
    strategy, (task,) = learn(tiny, source, schedule="constant", **recipe)
    start = tiny()
    start.add_classes(list(source.class_names), strategy.templates)
    names = list(strategy.selection)
    strategy.tasks_seen = 0  # draw the first task's factors again
    fresh = strategy.new_factors({n: start.get_parameter(n) for n in names})
    factors = {n: nn.Parameter(f) for n, f in fresh.items()}
    optimizer = torch.optim.AdamW(factors.values(), 0.01, weight_decay=0.1)
    images = torch.stack([row[0] for row in task.dataset])
    labels = torch.tensor(list(task.dataset.targets))

    def composed() -> dict[str, Tensor]:
        return {
            n: start.get_parameter(n)
            + 1.5
            * torch.cat([b @ a for a, b in zip(factors[f"{n}.A"], factors[f"{n}.B"], strict=True)])
            for n in names
        }

    for _ in range(2):
        optimizer.zero_grad()
        logits = torch.func.functional_call(start, composed(), (images, [0, 1]))
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
    for name, value in composed().items():
        trained = strategy.model.get_parameter(name)
        assert not torch.equal(trained, start.get_parameter(name))
        torch.testing.assert_close(trained, value, rtol=1e-4, atol=1e-5)


def test_a_task_starts_new_factors_on_the_merged_weights(tiny: Build, source: Source) -> None:
    one, _ = learn(tiny, source, 1, epochs=1, batch_size=8, lr=0.01)
    two, _ = learn(tiny, source, 2, epochs=1, batch_size=8, lr=0.01)
    name = next(iter(two.selection))
    assert torch.linalg.matrix_rank(two.start[name] - one.start[name]) == 6  # 2 of each third
    assert not torch.equal(one.last[f"{name}.A"], two.last[f"{name}.A"])
    assert not two.state_dict()["factors"]  # nothing of old tasks is kept
    assert two.trained_numbers() == 2 * 2 * 3 * 2 * (32 + 16)
    # What something else does to the weights is kept, and the factors add only their change.
    two.parameter_groups()
    offset = torch.ones_like(two.selection[name])
    before = two.selection[name].detach().clone()
    with torch.no_grad():
        two.selection[name].add_(offset)
    for parameter in two.selection.values():
        parameter.grad = torch.ones_like(parameter)
    old = two.compose(two._base, two.factors)[name].detach()
    two.update_weights()
    change = two.compose(two._base, two.factors)[name] - old
    torch.testing.assert_close(two.selection[name], before + offset + change)


def test_the_published_number_of_parameters() -> None:
    names, clip = chosen(Lora, LoraOptions())
    assert len(names) == 24
    strategy: Any = object.__new__(Lora)
    strategy.options, strategy.tasks_seen = LoraOptions(), 0
    strategy.seeds = type("Seeds", (), {"init": 0})
    factors = strategy.new_factors({n: torch.empty(clip.get_parameter(n).shape) for n in names})
    # 3 matrices of rank 2 in 12 blocks of two towers, as counted in CLIP-LoRA.
    assert sum(f.numel() for f in factors.values()) == 3 * 2 * 2 * 12 * (768 + 512) == 184_320
