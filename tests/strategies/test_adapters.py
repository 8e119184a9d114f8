"""Adapters on frozen features against plain PyTorch: loss, gradient, steps, and what is kept."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_clipfit import CLIPClassifier, CLIPStrategy, Recipe, Source, build_scenario
from cl_clipfit.strategies.clip_adapter import ClipAdapter, ClipAdapterOptions
from cl_clipfit.strategies.linear_adapter import LinearAdapter, LinearAdapterOptions
from cl_clipfit.strategies.tip_adapter import TipAdapter, TipOptions
from cl_clipfit.strategies.tip_adapter_f import TipAdapterF, TipFOptions

Build = Callable[..., CLIPClassifier]


def make(cls: type[CLIPStrategy], build: Build, source: Source, options: Any, **recipe: Any) -> Any:
    settings = {"epochs": 1, "batch_size": 48, "lr": 0.01, "schedule": "constant", **recipe}
    return cls(
        model=build(), class_names=source.class_names, recipe=Recipe(**settings), options=options
    )


def experiences(source: Source, tasks: int) -> Any:
    return build_scenario("s", source, tasks=tasks).benchmark.train_stream


def data_of(build: Build, experience: Any) -> tuple[Tensor, Tensor]:
    """Return zero-shot features and labels."""
    with torch.no_grad():
        features = build().image_features(torch.stack([d[0] for d in experience.dataset]))
    return features, torch.tensor([d[1] for d in experience.dataset])


def text_of(build: Build, source: Source) -> tuple[Tensor, Tensor]:
    model = build()
    model.add_classes(source.class_names)
    return model.zero_shot_text_features, model.logit_scale.detach()


def fit(module: nn.Module, score: Callable[[], Tensor], labels: Tensor, steps: int) -> None:
    """Take steps of AdamW on all images at once."""
    optimizer = torch.optim.AdamW(module.parameters(), 0.01, weight_decay=0)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(score(), labels).backward()
        optimizer.step()


def ranked(logits: Tensor, labels: Tensor) -> Tensor:
    outside = [c for c in range(logits.shape[1]) if c not in labels.tolist()]
    logits[:, outside] = -torch.inf
    return logits


@pytest.mark.parametrize("retained", [0.25, 1.0])
def test_the_linear_adapter_retains_what_moved_most(
    retained: float, tiny: Build, source: Source
) -> None:
    options = LinearAdapterOptions(retained=retained)
    strategy = make(LinearAdapter, tiny, source, options, epochs=3)
    text, scale = text_of(tiny, source)
    layer = nn.Linear(16, 16, bias=False)
    nn.init.eye_(layer.weight)
    for experience in experiences(source, 3):
        features, labels = data_of(tiny, experience)
        before = layer.weight.detach().clone()

        def score(features: Tensor = features, labels: Tensor = labels) -> Tensor:
            return ranked(scale * F.normalize(layer(features), dim=-1) @ text.T, labels)

        fit(layer, score, labels, 3)
        change = (layer.weight.detach() - before).abs()
        threshold = change.flatten().sort(descending=True).values[round(256 * retained) - 1]
        with torch.no_grad():
            layer.weight.copy_(torch.where(change >= threshold, layer.weight, before))
        strategy.train(experience, eval_streams=[])
        torch.testing.assert_close(strategy.matrix, layer.weight, rtol=0, atol=1e-4)
    images = source.test.images
    with torch.no_grad():
        adapted = F.normalize(layer(tiny().image_features(images)), dim=-1)
    torch.testing.assert_close(
        strategy.score_all(images), scale * adapted @ text.T, rtol=0, atol=0.02
    )


def test_clip_adapter_is_a_bottleneck_beside_the_feature(tiny: Build, source: Source) -> None:
    strategy = make(ClipAdapter, tiny, source, ClipAdapterOptions(ratio=0.3), epochs=4)
    text, scale = text_of(tiny, source)
    down, up = nn.Linear(16, 4, bias=False), nn.Linear(4, 16, bias=False)
    both = nn.Sequential(down, nn.ReLU(), up, nn.ReLU())
    with torch.no_grad():
        for layer, start in zip((down, up), strategy.weights, strict=True):
            assert start.abs().max() <= layer.in_features**-0.5
            layer.weight.copy_(start)
    (experience,) = experiences(source, 1)
    features, labels = data_of(tiny, experience)

    def adapted(features: Tensor) -> Tensor:
        return F.normalize(0.3 * both(features) + 0.7 * features, dim=-1)

    fit(both, lambda: scale * adapted(features) @ text.T, labels, 4)
    strategy.train(experience, eval_streams=[])
    for layer, found in zip((down, up), strategy.weights, strict=True):
        torch.testing.assert_close(found, layer.weight, rtol=0, atol=1e-4)
    images = source.test.images
    with torch.no_grad():
        expected = scale * adapted(tiny().image_features(images)) @ text.T
    torch.testing.assert_close(strategy.score_all(images), expected, rtol=0, atol=0.02)
    with strategy.model.weights(strategy.zero_shot_point()), torch.no_grad():
        zero_shot = scale * tiny().image_features(images) @ text.T
        torch.testing.assert_close(strategy.score_all(images), zero_shot, rtol=0, atol=1e-4)


def votes(features: Tensor, keys: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Return the votes of Tip-Adapter for six classes, by its matrices."""
    values = F.one_hot(labels, 6).to(keys)
    return torch.exp(-beta * (1 - features @ keys.T)) @ values


def memory(build: Build, source: Source, tasks: int, shots: int) -> tuple[Tensor, Tensor]:
    """Return the features of the first images of each class, and their labels."""
    keys, labels = [], []
    for experience in experiences(source, tasks):
        features, targets = data_of(build, experience)
        for label in targets.unique():
            keys.append(features[targets == label][:shots])
            labels += [int(label)] * len(keys[-1])
    return torch.cat(keys), torch.tensor(labels)


def test_tip_adapter_votes_beside_the_text(tiny: Build, source: Source) -> None:
    options = TipOptions(shots=3, weight=2.0, sharpness=5.5)
    strategy = make(TipAdapter, tiny, source, options)
    for experience in experiences(source, 3):
        strategy.train(experience, eval_streams=[])
    keys, labels = memory(tiny, source, 3, 3)
    assert len(keys) == 18
    text, scale = text_of(tiny, source)
    images = source.test.images
    with torch.no_grad():
        features = tiny().image_features(images)
    expected = scale * features @ text.T + 2.0 * votes(features, keys, labels, 5.5)
    torch.testing.assert_close(strategy.score_all(images), expected, rtol=1e-4, atol=1e-4)
    assert set(strategy.head_state()) == {"keys", "labels"}


def test_tip_adapter_f_trains_its_keys(tiny: Build, source: Source) -> None:
    options = TipFOptions(shots=3, weight=2.0, sharpness=5.5)
    strategy = make(TipAdapterF, tiny, source, options, epochs=3)
    text, scale = text_of(tiny, source)
    all_keys, all_labels = memory(tiny, source, 2, 3)
    trained = torch.zeros(18, 16)
    for experience in experiences(source, 2):
        features, labels = data_of(tiny, experience)
        own = torch.isin(all_labels, labels)
        trained[own] = all_keys[own]
        cache = nn.Linear(16, int(own.sum()), bias=False)
        with torch.no_grad():
            cache.weight.copy_(trained[own])

        def score(
            features: Tensor = features, labels: Tensor = labels,
            cache: nn.Linear = cache, own: Tensor = own,
        ) -> Tensor:  # fmt: skip
            vote = votes(features, cache.weight, all_labels[own], 5.5)
            return ranked(scale * features @ text.T + 2.0 * vote, labels)

        fit(cache, score, labels, 3)
        trained[own] = cache.weight.detach()
        strategy.train(experience, eval_streams=[])
        torch.testing.assert_close(strategy.keys.detach(), trained, rtol=0, atol=1e-4)
    assert not torch.equal(trained, all_keys)
    images = source.test.images
    with torch.no_grad():
        features = tiny().image_features(images)
    expected = scale * features @ text.T + 2.0 * votes(features, trained, all_labels, 5.5)
    torch.testing.assert_close(strategy.score_all(images), expected, rtol=1e-4, atol=1e-3)


def test_parameters_of_vit_b_16(tiny: Build) -> None:
    for cls, count in (
        (LinearAdapter, 262_144),
        (ClipAdapter, 131_072),
        (TipAdapterF, 512 * 16 * 2),
    ):
        model = tiny()
        model.add_classes(["a", "b"])
        model.zero_shot_text_features = torch.zeros(2, 512)  # as wide as those of ViT-B/16
        strategy = cls(model=model)
        assert sum(p.numel() for p in strategy.trainable()) == count
