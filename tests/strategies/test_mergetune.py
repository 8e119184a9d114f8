"""MERGETUNE against the published equations, its limits, and a quadratic whose answer is known."""

import contextlib
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_clipfit import CLIPClassifier, CLIPStrategy, Options, Recipe, Source, build_scenario
from cl_clipfit.cli.app import main
from cl_clipfit.clip.context import context_in_place
from cl_clipfit.evaluation.fisher import diagonal_fisher
from cl_clipfit.methods.continued import Stage
from cl_clipfit.methods.prompt import PromptOptions
from cl_clipfit.registry import Registry
from cl_clipfit.strategies.clipfit import ClipFit, ClipFitOptions
from cl_clipfit.strategies.coop import CoOp
from cl_clipfit.strategies.kgcoop import KgCoOp, KgCoOpOptions
from cl_clipfit.strategies.mergetune import MergeTune, MergeTuneOptions
from tests.support.tiny import TINY

Build = Callable[..., CLIPClassifier]
RECIPE = Recipe(epochs=2, batch_size=8, lr=0.02)
OFF = {"lambda_zero_shot": 0.0, "lambda_previous": 0.0, "beta": 0.0, "landscape": "off"}


def make(
    build: Build, source: Source, host: type[CLIPStrategy] = ClipFit, recipe: Recipe = RECIPE,
    host_options: Options | None = None, **own: Any,
) -> MergeTune:  # fmt: skip
    torch.manual_seed(3)
    return MergeTune.over(host)(
        model=build(), class_names=source.class_names, recipe=recipe, host_options=host_options,
        options=MergeTuneOptions(**{"landscape": "off", **own}),
    )  # fmt: skip


def learn(strategy: CLIPStrategy, source: Source, tasks: int = 2, again: bool = False) -> None:
    torch.manual_seed(3)
    for experience in build_scenario("s", source, tasks=3).benchmark.train_stream[:tasks]:
        strategy.train(experience, eval_streams=[])
        if again:
            strategy.train(experience, eval_streams=[])


def values(strategy: CLIPStrategy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in strategy.selection.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_with_all_terms_off_it_is_the_host_trained_longer_bit_for_bit(
    tiny: Build, source: Source, optimizer: str
) -> None:
    recipe = RECIPE.model_copy(update={"optimizer": optimizer, "augmentation": "crop-flip"})
    strategy = make(tiny, source, recipe=recipe, tau=1.0, merge_epochs=2, **OFF)
    learn(strategy, source)
    torch.manual_seed(3)
    host = ClipFit(model=tiny(), class_names=source.class_names, recipe=recipe)
    learn(host, source, again=True)
    assert same(values(strategy), values(host))
    shorter = make(tiny, source, recipe=recipe, tau=1.0, merge_epochs=1, **OFF)
    learn(shorter, source)
    assert not same(values(shorter), values(host))


def test_without_steps_tau_one_gives_the_host_and_tau_zero_the_start(
    tiny: Build, source: Source
) -> None:
    at_host = make(tiny, source, tau=1.0, merge_epochs=0)
    learn(at_host, source)
    host = ClipFit(model=tiny(), class_names=source.class_names, recipe=RECIPE)
    learn(host, source)
    assert same(values(at_host), values(host))
    for start in ("previous", "zero-shot"):
        at_start = make(tiny, source, tau=0.0, merge_epochs=0, start=start)
        learn(at_start, source)
        assert same(values(at_start), at_start.model.pretrained_values)


def test_a_read_out_leaves_the_hosts_way_untouched(tiny: Build, source: Source) -> None:
    recipe = RECIPE.model_copy(update={"augmentation": "crop-flip"})
    strategy = make(tiny, source, recipe=recipe, trajectory="read-out", tau=0.5)
    torch.manual_seed(3)
    host = ClipFit(model=tiny(), class_names=source.class_names, recipe=recipe)
    learn(strategy, source, tasks=3)
    learn(host, source, tasks=3)
    assert same(dict(strategy.compared()["host"]), values(host))
    assert not same(values(strategy), values(host))
    chained = make(tiny, source, recipe=recipe, tau=0.5)
    learn(chained, source, tasks=3)
    assert not same(dict(chained.compared()["host"]), values(host))


def in_second_stage(strategy: MergeTune, source: Source, task: int = 2) -> tuple[Tensor, Tensor]:
    """Put a strategy into the middle of a second stage, at weights away from all its points."""
    strategy.task_classes, strategy.seen_classes = [2, 3], [0, 1, 2, 3]
    strategy.select()
    strategy.tasks_seen = task
    generator = torch.Generator().manual_seed(4)

    def near(base: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: v + 0.2 * torch.randn(v.shape, generator=generator) for n, v in base.items()}

    zero_shot = strategy.zero_shot_point()
    stage = Stage(zero_shot, near(zero_shot), near(zero_shot))
    if strategy.merge.space == "text-features":
        strategy.prepare_stage(stage)
    strategy.model.load_values(near(zero_shot))
    strategy.second_stage = stage
    own = torch.isin(source.train.labels, torch.tensor([2, 3]))
    return source.train.images[own], source.train.labels[own]


def full_objective(
    strategy: MergeTune, images: Tensor, labels: Tensor, alphas: list[float]
) -> float:
    """The loss at the weights and on the line, by plain arithmetic."""
    stage, own = strategy.second_stage, strategy.merge
    assert stage is not None
    here = values(strategy)
    total = strategy.training_loss(images, labels).item()
    for alpha in alphas:
        point = {n: stage.host[n] + alpha * (here[n] - stage.host[n]) for n in here}
        strategy.model.load_values(point)
        total += own.beta / len(alphas) * strategy.training_loss(images, labels).item()
    strategy.model.load_values(here)
    return total


def test_gradients_of_the_path_agree_with_finite_differences(tiny: Build, source: Source) -> None:
    strategy = make(
        lambda: tiny().double(), source, beta=2.0, alpha="grid-2",
    )  # fmt: skip
    strategy.model.zero_shot_text_features = strategy.model.zero_shot_text_features.double()
    images, labels = in_second_stage(strategy, source)
    pixels = strategy.model.preprocess(images).double()
    strategy.mbatch = [pixels, labels, torch.zeros(len(labels))]
    strategy.loss = strategy.training_loss(pixels, labels)
    strategy.loss.backward()
    strategy.loss = strategy.loss.detach()
    strategy.add_gradients()
    assert float(strategy.loss) == pytest.approx(
        full_objective(strategy, pixels, labels, [0.1, 0.6]), rel=1e-6
    )
    generator = torch.Generator().manual_seed(8)
    here = values(strategy)
    for _ in range(3):
        way = {n: torch.randn(v.shape, generator=generator).double() for n, v in here.items()}
        ends = []
        for step in (1e-5, -1e-5):
            strategy.model.load_values({n: here[n] + step * way[n] for n in here})
            ends.append(full_objective(strategy, pixels, labels, [0.1, 0.6]))
        strategy.model.load_values(here)
        slope = sum(float((strategy.selection[n].grad * way[n]).sum()) for n in here)
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


HOSTS = [
    (CoOp, PromptOptions(), 0.0), (KgCoOp, KgCoOpOptions(), 8.0),
    (ClipFit, ClipFitOptions(), 8.0), (KgCoOp, KgCoOpOptions(kd_weight=0), 0.0),
]  # fmt: skip


def cosine(text: Tensor, anchor: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(text, anchor, dim=1).mean()


def euclidean(text: Tensor, anchor: Tensor) -> Tensor:
    return ((text / text.norm(dim=1, keepdim=True) - anchor).square().sum(1)).sqrt().mean()


@pytest.mark.parametrize(
    ("anchor", "metric"), [("zero-shot", None), ("both", None), ("zero-shot", "l2")]
)
@pytest.mark.parametrize(("host", "options", "kd"), HOSTS)
def test_text_feature_space_equals_the_published_objective(
    tiny: Build, source: Source, host: type[CLIPStrategy], options: Options, kd: float, anchor: str,
    metric: str | None,
) -> None:  # fmt: skip
    strategy = make(
        tiny, source, host, host_options=options, space="text-features", anchor=anchor,
        metric=metric, lambda_zero_shot=8.0, lambda_previous=5.0, beta=1.0, alpha="grid-5",
    )  # fmt: skip
    images, labels = in_second_stage(strategy, source)
    stage, model = strategy.second_stage, strategy.model
    assert stage is not None
    loss = strategy.training_loss(images, labels)
    gradients = torch.autograd.grad(loss, list(strategy.selection.values()), allow_unused=True)

    classes = list(strategy.text_space())
    rows = [classes.index(c) for c in (2, 3)]
    tokens = torch.cat([model._tokens[c] for c in classes])

    def encode() -> Tensor:
        with context_in_place(model.clip, model.context):
            return model.clip.encode_text(tokens)

    with torch.no_grad(), model.weights(stage.host):
        host_text = encode()
    with torch.no_grad(), model.weights(stage.previous):
        before = encode()
    text = encode()
    zero_shot = model.zero_shot_text_features[classes]
    image = model.clip.encode_image(model.preprocess(images))
    image = image / image.norm(dim=1, keepdim=True)
    scale, targets = model.clip.logit_scale.exp(), labels - 2

    def entropy(features: Tensor) -> Tensor:
        unit = features / features.norm(dim=1, keepdim=True)
        odds = (scale * image @ unit[rows].T).log_softmax(1)
        return -odds[torch.arange(len(targets)), targets].mean()

    away = (euclidean if metric == "l2" else cosine)(text, zero_shot)
    line = [entropy(host_text + a * (text - host_text)) for a in (0.1, 0.3, 0.5, 0.7, 0.9)]
    expected = entropy(text) + kd * cosine(text, zero_shot) + 8.0 * away + torch.stack(line).mean()
    if anchor == "both":
        expected = expected + 5.0 * cosine(text, F.normalize(before, dim=1))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    reference = torch.autograd.grad(expected, list(strategy.selection.values()), allow_unused=True)
    for got, wanted in zip(gradients, reference, strict=True):
        assert got is not None and wanted is not None
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


class Bowl(CLIPStrategy):
    """A host whose loss is (h/2) ||w - target||^2, of the image LayerNorms' weights alone."""

    curvature = 3.0

    def trainable(self) -> Iterable[nn.Parameter]:
        norms = (m for m in self.model.clip.visual.modules() if isinstance(m, nn.LayerNorm))
        return [norm.weight for norm in norms]

    def training_logits(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), len(self.model.class_names))

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        start = self.model.pretrained_values
        squares = [(p - start[n] - 0.5).square().sum() for n, p in self.selection.items()]
        return self.curvature / 2 * torch.stack(squares).sum()


@pytest.mark.parametrize(
    ("beta", "weight", "momentum"), [(0.0, 20.0, 0.0), (2.0, 20.0, 0.0), (2.0, 90.0, 0.5)]
)
def test_the_minimiser_on_a_quadratic_is_the_known_one(
    tiny: Build, source: Source, beta: float, weight: float, momentum: float
) -> None:
    """SGD ends at the minimiser of L + lambda / (2 sum of rates) ||w - w1||^2."""
    recipe = Recipe(
        epochs=150, batch_size=12, optimizer="sgd", lr=0.05, schedule="constant", momentum=momentum
    )
    strategy = make(
        tiny, source, Bowl, recipe, lambda_zero_shot=weight, beta=beta, alpha="grid-5", tau=0.9,
        merge_epochs=150,
    )  # fmt: skip
    learn(strategy, source, tasks=1)
    start = strategy.model.pretrained_values
    squares = sum(a * a for a in (0.1, 0.3, 0.5, 0.7, 0.9)) / 5
    bowl = Bowl.curvature / 2 * (1 + beta * squares)
    steps = 150 * -(-int((source.train.labels < 2).sum()) // 12)
    rates = steps * 0.05 / (1 - momentum)
    share = bowl / (bowl + weight / (2 * rates))
    assert 0.2 < share < 0.9
    for name, value in values(strategy).items():
        expected = start[name] + share * 0.5
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-4)


class Still(ClipFit):
    """A host whose loss is constant in the second stage, where only the pulls move it."""

    def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().compute_loss(logits, labels) * (self.second_stage is None)


@pytest.mark.parametrize(
    ("optimizer", "lr", "schedule", "batch_size"),
    [
        ("adamw", 1e-4, "cosine", 3), ("adamw", 0.3, "constant", 1),
        ("sgd", 1e-4, "constant", 3), ("sgd", 0.3, "cosine", 3),
    ],
)  # fmt: skip
def test_a_weight_is_how_far_the_pull_alone_shrinks_the_distance(
    tiny: Build, source: Source, optimizer: str, lr: float, schedule: str, batch_size: int
) -> None:
    recipe = Recipe(
        epochs=2, batch_size=batch_size, optimizer=optimizer, lr=1e-2, schedule=schedule
    )
    strategy = make(
        tiny, source, Still, recipe, lambda_zero_shot=0.7, tau=1.0, merge_lr=lr, merge_epochs=12
    )
    learn(strategy, source, tasks=1)
    record = strategy.records[0]
    assert record["ratio_to_zero_shot"] == pytest.approx(math.exp(-0.7), rel=0.02)
    assert record["cosine_to_zero_shot"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("anchor", ["zero-shot", "previous"])
def test_the_end_is_nearer_the_larger_the_weight(
    tiny: Build, source: Source, optimizer: str, anchor: str
) -> None:
    recipe = Recipe(epochs=4, batch_size=4, optimizer=optimizer, lr=0.02)
    ratios = []
    for weight in (0.0, 0.3, 30.0, 1e6):
        strategy = make(
            tiny, source, recipe=recipe, anchor=anchor, tau=0.9, trajectory="read-out",
            lambda_zero_shot=weight, lambda_previous=weight,
        )  # fmt: skip
        learn(strategy, source)
        ratios.append(strategy.records[1]["ratio_to_" + anchor.replace("-", "_")])
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] < 1e-3 < 0.1 < ratios[0]


def test_rows_of_a_head_for_old_classes_stay_bit_for_bit(tiny: Build, source: Source) -> None:
    for start, anchor in (("previous", "both"), ("zero-shot", "zero-shot")):
        strategy = make(
            tiny, source, CLASSES["linear-head"], anchor=anchor, start=start, lambda_zero_shot=2.0
        )
        learn(strategy, source, tasks=1)
        first = values(strategy)["head"]
        strategy = make(
            tiny, source, CLASSES["linear-head"], anchor=anchor, start=start, lambda_zero_shot=2.0
        )
        learn(strategy, source, tasks=3)
        moved = values(strategy)["head"] != strategy.zero_shot_point()["head"]
        assert moved.any(1).all()
        assert torch.equal(values(strategy)["head"][:2], first[:2])


@pytest.mark.parametrize(("name", "passes"), [("coop", 1), ("linear-head", 1), ("clipfit", 4)])
def test_a_frozen_image_tower_runs_once_whatever_the_points_of_the_line(
    name: str, passes: int, tiny: Build, source: Source
) -> None:
    strategy = make(tiny, source, CLASSES[name], alpha="midpoints-3")
    images, labels = in_second_stage(strategy, source)
    strategy.mbatch = [images, labels, torch.zeros(len(labels))]
    calls: list[int] = []
    norm = strategy.model.clip.visual.ln_post  # a hook on the tower would change its encoder
    handle = norm.register_forward_hook(lambda *_: calls.append(1))
    gradients = []
    for known in (True, False):
        calls.clear()
        strategy.model.zero_grad()
        strategy.loss = strategy.training_loss(strategy.mb_x, labels)
        strategy.loss.backward()
        strategy.loss = strategy.loss.detach()
        if not known:  # a copy of the batch is another tensor: everything is encoded again
            strategy.mbatch[0] = images.clone()
            strategy._shared_images = contextlib.nullcontext  # type: ignore[method-assign]
        strategy.add_gradients()
        assert len(calls) == (passes if known else 4)
        gradients.append([p.grad.clone() for p in strategy.selection.values()])
    handle.remove()
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_anchors_count_as_they_should(tiny: Build, source: Source) -> None:
    for anchor, first, later in (("both", 1, 2), ("zero-shot", 1, 1), ("previous", 1, 1)):
        strategy = make(tiny, source, anchor=anchor)
        in_second_stage(strategy, source)
        stage = strategy.second_stage
        assert stage is not None
        pulls = strategy._weight_pulls(stage)
        assert len(pulls) == later
        assert (pulls[0].anchor is stage.previous) == (anchor == "previous")
        start = Stage(stage.zero_shot, stage.zero_shot, stage.host)
        assert len(strategy._weight_pulls(start)) == first


def test_the_fisher_weights_the_pull_and_adds_up_over_tasks(tiny: Build, source: Source) -> None:
    strategy = make(
        tiny, source, metric="fisher", lambda_previous=0.7, lambda_zero_shot=0.2, fisher_samples=4
    )
    in_second_stage(strategy, source)
    stage = strategy.second_stage
    assert stage is not None
    generator = torch.Generator().manual_seed(6)
    weight = {n: torch.rand(p.shape, generator=generator) for n, p in strategy.selection.items()}
    strategy._fisher = weight
    to_zero_shot, to_previous = strategy._weight_pulls(stage)

    def squares(anchor: dict[str, Tensor], group: str) -> Tensor:
        return sum(
            (stage.host[n] - anchor[n]).square().sum()
            for n in weight if stage.groups[n] == group
        )  # fmt: skip

    far = sum((weight[n] * (stage.host[n] - stage.previous[n]).square()).sum() for n in weight)
    for name, group in stage.groups.items():
        moved = squares(stage.previous, group)
        expected = 0.7 * 3 * weight[name] * moved / far  # three groups of tensors
        torch.testing.assert_close(to_previous.rates[name], expected, rtol=1e-4, atol=1e-7)
        expected = 0.2 * moved / squares(stage.zero_shot, group)
        torch.testing.assert_close(to_zero_shot.rates[name], expected, rtol=1e-4, atol=1e-7)
    learned = make(tiny, source, metric="fisher", fisher_samples=4)
    learn(learned, source, tasks=1)
    first = {n: v.clone() for n, v in (learned._fisher or {}).items()}
    twice = make(tiny, source, metric="fisher", fisher_samples=4)
    learn(twice, source, tasks=2)
    assert all((twice._fisher[n] >= first[n]).all() for n in first)
    assert any((twice._fisher[n] > first[n]).any() for n in first)


def test_distillation_can_be_left_out_of_the_second_stage_alone(
    tiny: Build, source: Source
) -> None:
    seen: dict[bool, list[float]] = {True: [], False: []}

    class Spy(ClipFit):
        def compute_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
            seen[self.second_stage is not None].append(self.options.kd_weight)
            return super().compute_loss(logits, labels)

    learn(make(tiny, source, Spy, host_options=ClipFitOptions(kd_weight=3), keep_kd=False), source)
    assert (set(seen[False]), set(seen[True])) == ({3.0}, {0.0})


def test_a_second_stage_that_diverges_is_said_so(tiny: Build, source: Source) -> None:
    recipe = Recipe(epochs=4, batch_size=4, optimizer="sgd", lr=1e-4)
    strategy = make(tiny, source, recipe=recipe, merge_lr=10.0, **OFF)
    learn(strategy, source, tasks=1)
    assert "diverged" in strategy.warnings[0]
    assert strategy.records[0]["ratio_to_zero_shot"] > 3


def test_the_second_stage_takes_its_own_batch_size_and_the_published_weight_decay(
    tiny: Build, source: Source
) -> None:
    seen: dict[bool, list[tuple[int, float]]] = {False: [], True: []}

    class Spy(CoOp):
        def after_step(self) -> None:
            decay = self.optimizer.param_groups[0]["weight_decay"]
            seen[self.second_stage is not None].append((len(self.mb_x), decay))

    recipe = Recipe(epochs=2, batch_size=4, optimizer="sgd", lr=1e-3, weight_decay=5e-4)
    for space, decay in (("weights", 0.0), ("text-features", 5e-4)):
        seen[False].clear(), seen[True].clear()
        strategy = make(tiny, source, Spy, recipe, space=space, merge_batch_size=3)
        learn(strategy, source, tasks=1)
        images = int((source.train.labels < 2).sum())
        for stage, size, expected in ((False, 4, 5e-4), (True, 3, decay)):
            assert {decay for _, decay in seen[stage]} == {expected}
            sizes = [count for count, _ in seen[stage]]
            assert max(sizes) == size
            assert len(sizes) == (1 if stage else 2) * -(-images // size)
        assert strategy.train_mb_size == 4


def test_a_second_stage_is_never_all_warm_up(tiny: Build, source: Source) -> None:
    recipe = Recipe(epochs=2, batch_size=8, lr=0.02, warmup_epochs=1, warmup_lr=1e-9)
    strategy = make(tiny, source, recipe=recipe, tau=1.0, **OFF)  # one epoch
    learn(strategy, source, tasks=1)
    assert not same(dict(strategy.compared()["host"]), values(strategy))
    moved = [(strategy.compared()["host"][n] - v).abs().max() for n, v in values(strategy).items()]
    assert max(moved) > 1e-3


def test_the_fisher_is_the_mean_square_of_single_gradients(tiny: Build, source: Source) -> None:
    strategy = make(tiny, source)
    images, _ = in_second_stage(strategy, source)
    strategy.second_stage = None
    found = diagonal_fisher(strategy, images[:6], torch.Generator().manual_seed(1))
    draws = torch.Generator().manual_seed(1)
    expected = {name: torch.zeros_like(p) for name, p in strategy.selection.items()}
    for image in images[:6]:
        logits = strategy.model(image[None], [2, 3])
        label = torch.multinomial(
            torch.cat([torch.zeros(1, 2), logits.softmax(1).detach(), torch.zeros(1, 2)], 1), 1,
            generator=draws,
        )[0] - 2  # fmt: skip
        strategy.model.zero_grad()
        F.cross_entropy(logits, label).backward()
        for name, p in strategy.selection.items():
            expected[name] += p.grad.square() / 6
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-8)
        assert (value >= 0).all()


@pytest.mark.parametrize(
    "own",
    [
        {"metric": "fisher", "fisher_samples": 4, "lambda_previous": 1.0},
        {"alpha": "midpoints-3", "keep_kd": False, "ensemble": 0.5, "landscape": "sample"},
        {"trajectory": "read-out", "start": "zero-shot", "anchor": "previous"},
        {"space": "text-features"},
        {"space": "text-features", "metric": "l2", "merge_batch_size": 128},
    ],
)
def test_every_setting_runs_and_is_noted(tiny: Build, source: Source, own: dict[str, Any]) -> None:
    strategy = make(tiny, source, **own)
    learn(strategy, source)
    assert len(strategy.records) == 2
    first, second = strategy.records
    assert first["ratio_to_zero_shot"] == first["ratio_to_previous"]
    assert second["merge_seconds"] > 0
    assert ("barriers" in second) == (own.get("landscape") == "sample")
    assert ("ensemble with zero-shot" in strategy.compared()) == ("ensemble" in own)
    ratio = second["ratio_to_zero_shot"]
    wise = strategy.compared()["wise-ft at the same distance"]
    start, host = strategy.zero_shot_point(), strategy.compared()["host"]
    for name in wise:
        torch.testing.assert_close(wise[name], start[name] + ratio * (host[name] - start[name]))


REGISTRY = Registry([Path("examples/image_norms.py")])
CLASSES = {
    entry.name: REGISTRY.strategy_class(entry.name) for entry in REGISTRY.entries("strategies")
}
TRAINED = [n for n, c in CLASSES.items() if not MergeTune.refuses(c)]


@pytest.mark.parametrize("name", TRAINED)
def test_every_registered_host_is_continued(name: str, tiny: Build, source: Source) -> None:
    strategy = make(tiny, source, CLASSES[name], recipe=Recipe(epochs=1, batch_size=8))
    learn(strategy, source)
    start, host = strategy.zero_shot_point(), strategy.compared()["host"]
    assert set(start) == set(host) == set(strategy.selection)
    for record in strategy.records:
        assert 0 < record["ratio_to_zero_shot"] < 2
        assert record["cosine_to_zero_shot"] > 0
    with strategy.model.weights(start):  # the zero-shot point is zero-shot CLIP
        images = source.test.images
        torch.testing.assert_close(strategy.score_all(images), tiny_zero_shot(tiny, source)(images))


def tiny_zero_shot(tiny: Build, source: Source) -> CLIPClassifier:
    model = tiny()
    model.add_classes(source.class_names, ["a photo of a {}."])
    return model


ADDED = """
import torch
from torch import nn
from cl_clipfit import CLIPStrategy
class Mine(CLIPStrategy):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.model.extra = nn.Parameter(torch.randn(3))
    def trainable(self):
        return [self.model.extra]
"""


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("mine", "has no zero-shot point"),
        ("zero-shot", "trains nothing that could be continued"),
        ("mergetune", "builds on another method itself"),
        ("clipfiy", "unknown strategy 'clipfiy'"),
        ("clipfit,landscap=off", "nor its host has an option 'landscap'. Did you mean"),
        ("clipfit,hosst=coop", "nor its host has an option 'hosst'. Did you mean 'host'"),
        ("clipfit,metric=fisher,anchor=zero-shot", "metric=fisher needs"),
        ("clipfit,metric=cosine", "metric=cosine needs space=text-features"),
        ("clipfit,alpha=grid-0", "alpha"),
        ("linear-head,space=text-features", "space=text-features needs a host"),
    ],
)
def test_what_cannot_be_continued_is_refused_in_a_line(
    host: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(ADDED)
    label = f"mergetune:host={host}"
    arguments = [*TINY, str(file), "--strategy", label, "--output", str(tmp_path / "runs")]
    assert main([*arguments, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
