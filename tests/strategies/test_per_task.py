"""Weights per task: what each image is scored with, one image at a time, and the posterior."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from cl_clipfit import CLIPClassifier, CLIPStrategy, Recipe, Source, build_scenario
from cl_clipfit.bank.routing import TaskRouter, class_statistics, route, task_posterior
from cl_clipfit.cli.app import main
from cl_clipfit.registry import Registry
from cl_clipfit.strategies.c_ln import ContinualLayerNorm
from cl_clipfit.strategies.clipfit import ClipFit
from cl_clipfit.strategies.routed import Routed, RoutedOptions
from tests.support.tiny import TINY

Build = Callable[..., CLIPClassifier]
TASKS = 3
TEMPLATES = ("a photo of a {}.",)


def learn(cls: type[CLIPStrategy], build: Build, source: Source, **more: Any) -> tuple[Any, Any]:
    torch.manual_seed(1)
    scenario = build_scenario("s", source, tasks=TASKS)
    recipe = Recipe(epochs=1, batch_size=8, lr=0.03)
    strategy = cls(model=build(), class_names=scenario.class_names, recipe=recipe, **more)
    for experience in scenario.benchmark.train_stream:
        strategy.train(experience, eval_streams=[])
    return strategy, scenario


def statistics_of(build: Build, scenario: Any) -> list[dict[str, Tensor]]:
    statistics, model = [], build()
    for experience in scenario.benchmark.train_stream:
        images = torch.stack([data[0] for data in experience.dataset])
        labels = torch.tensor([data[1] for data in experience.dataset])
        with torch.no_grad():
            statistics.append(class_statistics(model.image_features(images), labels))
    return statistics


@torch.no_grad()
def one_by_one(
    strategy: Any, images: Tensor, choices: list[int], score: Callable[[Tensor], Tensor]
) -> Tensor:
    """Score each image alone, with the weights of its task."""
    rows = []
    for image, task in zip(images.split(1), choices, strict=True):
        with strategy.model.weights(strategy.values[task]):
            rows.append(score(image))
    return torch.cat(rows)


@pytest.mark.parametrize("rule", ["gaussian", "nearest-mean"])
@pytest.mark.parametrize("host", ["clipfit", "full", "linear-head", "coop"])
def test_routed_images_have_the_weights_of_their_task(
    host: str, rule: Any, tiny: Build, source: Source
) -> None:
    host_class = Registry().strategy_class(host)
    options = RoutedOptions(rule=rule, shrinkage=0.3)
    strategy, scenario = learn(Routed.over(host_class), tiny, source, options=options)
    images = scenario.test.images
    with torch.no_grad():
        features = tiny().image_features(images)
    choices = route(features, statistics_of(tiny, scenario), rule, 0.3).tolist()
    assert set(choices) == set(range(TASKS))
    model, below = strategy.model, host_class.scores
    assert strategy.mixes == (host in ("clipfit", "coop"))
    expected = one_by_one(strategy, images, choices, lambda image: below(strategy, image))
    torch.testing.assert_close(strategy.score_all(images), expected, rtol=1e-4, atol=1e-3)
    names = ["one", "other"]

    def probe(image: Tensor) -> Tensor:
        return model.logits(model.image_features(image), model.encode_names(names, TEMPLATES))

    expected = one_by_one(strategy, images, choices, probe)
    found = strategy.score_probe(images, names, TEMPLATES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_soft_routing_mixes_norms_and_the_scores_of_texts(
    tiny: Build, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    sure = TaskRouter.posterior

    def unsure(router: TaskRouter, features: Tensor) -> Tensor:
        return 0.6 * sure(router, features) + 0.4 / router.tasks

    monkeypatch.setattr(TaskRouter, "posterior", unsure)
    options = RoutedOptions(mix="soft", shrinkage=0.9)
    strategy, scenario = learn(Routed.over(ClipFit), tiny, source, options=options)
    model, images, expected = strategy.model, scenario.test.images, []
    with torch.no_grad():
        features = tiny().image_features(images)
        router = TaskRouter(statistics_of(tiny, scenario), "gaussian", 0.9)
        shares = unsure(router, features)
        text = []
        for values in strategy.values:
            with model.weights(values):
                text.append(model.text_features())
        for image, share in zip(images.split(1), shares, strict=True):
            mixed = {
                name: sum(p * v[name] for p, v in zip(share, strategy.values, strict=True))
                for name in strategy.selection
                if name.startswith("clip.visual.")
            }
            with model.weights(mixed):
                feature = model.image_features(image)
            scores = [p * model.logits(feature, t) for p, t in zip(share, text, strict=True)]
            expected.append(sum(scores))
    found = strategy.score_all(images)
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-3)


def test_the_posterior_is_that_of_linear_discriminant_analysis() -> None:
    draws = torch.Generator().manual_seed(3)
    labels = torch.arange(6).repeat_interleave(20)
    centres = torch.randn(6, 4, generator=draws)
    features = centres[labels] + 0.8 * torch.randn(120, 4, generator=draws)
    queries = torch.randn(50, 4, generator=draws)
    statistics = [
        class_statistics(features[labels // 2 == t], labels[labels // 2 == t]) for t in range(3)
    ]
    found = task_posterior(queries, statistics, shrinkage=0.2)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2, priors=np.full(6, 1 / 6))
    model.fit(features.double().numpy(), labels.numpy())
    # Its covariance divides by N, that of the router by N - C: the same logits, to be scaled.
    logits = model.decision_function(queries.double().numpy()) * (114 / 120)
    expected = F.softmax(torch.from_numpy(logits), 1).view(50, 3, 2).sum(2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_c_ln_takes_the_norms_with_the_nearest_key(tiny: Build, source: Source) -> None:
    strategy, scenario = learn(ContinualLayerNorm, tiny, source)
    assert all(name.startswith("clip.visual.") for name in strategy.selection)
    assert strategy.mixes
    model, images = tiny(), scenario.test.images
    keys = []
    for experience in scenario.benchmark.train_stream:
        with torch.no_grad():
            queries = model.image_features(torch.stack([data[0] for data in experience.dataset]))
        key = torch.randn(queries.shape[1], generator=torch.Generator().manual_seed(0))
        key.requires_grad_()
        optimizer = torch.optim.Adam([key], lr=0.05)
        for _ in range(400):  # as the paper learns a key
            optimizer.zero_grad()
            (-F.cosine_similarity(queries, key[None]).mean()).backward()
            optimizer.step()
        keys.append(F.normalize(key.detach(), dim=0))
    for learned, found in zip(keys, strategy.keys, strict=True):
        torch.testing.assert_close(found, learned, rtol=0, atol=1e-3)
    with torch.no_grad():
        choices = (model.image_features(images) @ torch.stack(strategy.keys).T).argmax(1).tolist()
    assert len(set(choices)) > 1
    expected = one_by_one(
        strategy, images, choices, lambda image: CLIPStrategy.scores(strategy, image)
    )
    torch.testing.assert_close(strategy.score_all(images), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("start", ["tuned", "zero-shot"])
@pytest.mark.parametrize("name", ["routed", "c-ln"])
def test_a_task_starts_where_it_is_said_to(
    name: str, start: Any, tiny: Build, source: Source
) -> None:
    entry = Registry().get("strategies", name)
    cls: Any = entry.strategy_class()
    cls = cls.over(ClipFit) if cls.base_option else cls

    class Steps(cls):
        def parameter_groups(self) -> list[dict[str, Any]]:
            self.starts = [*getattr(self, "starts", []), self.current_values()]
            return super().parameter_groups()

    options = entry.options_class()(start=start)
    strategy, _ = learn(Steps, tiny, source, options=options)
    zero_shot = [strategy.zero_shot_point()] * TASKS
    expected = strategy.values if start == "tuned" else zero_shot
    for found, values in zip(strategy.starts[1:], expected, strict=False):
        assert all(torch.equal(found[n], value) for n, value in values.items())


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("routed:mix=soft,rule=nearest-mean", "mix=soft needs rule=gaussian"),
        ("routed:host=full,mix=soft", "needs a host that tunes only LayerNorms"),
        ("routed:host=zero-shot", "trains nothing that could be routed"),
        ("c-ln --online 7", "trains on a task's images again"),
    ],
)
def test_what_cannot_be_routed_is_refused(
    label: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, "--strategy", *label.split()]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
