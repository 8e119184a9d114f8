"""MG-CLIP: its epochs, factors, visual classifier and scores against plain PyTorch."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_clipfit import CLIPClassifier, Recipe, Source, build_scenario
from cl_clipfit.heads.cosine import cosine_rows
from cl_clipfit.strategies.mg_clip import MgClip, MgClipOptions
from tests.support.published import chosen

Build = Callable[..., CLIPClassifier]


class Counted(MgClip):
    """Counts the steps of every task."""

    steps: list[int]

    def after_step(self) -> None:
        super().after_step()
        self.steps[self.tasks_seen] += 1


def learn(
    build: Build, source: Source, tasks: int = 1, epochs: int = 3, **options: Any
) -> tuple[Counted, list[Any]]:
    torch.manual_seed(0)
    scenario = build_scenario("s", source, tasks=3)
    strategy = Counted(
        model=build(), class_names=source.class_names,
        recipe=Recipe(epochs=epochs, batch_size=8, lr=0.02), options=MgClipOptions(**options),
    )  # fmt: skip
    strategy.steps = [0] * 4
    experiences = list(scenario.benchmark.train_stream)[:tasks]
    for experience in experiences:
        strategy.train(experience, eval_streams=[])
    return strategy, experiences


def pixels(experience: Any) -> tuple[Tensor, Tensor]:
    images = torch.stack([row[0] for row in experience.dataset])
    return images, torch.tensor(list(experience.dataset.targets))


def test_task_one_is_trained_anew_with_the_epochs_that_preserve_the_gap(
    tiny: Build, source: Source
) -> None:
    lost, (first, _) = learn(tiny, source, 2, tolerance=0.0)
    kept, _ = learn(tiny, source, 2, tolerance=1e9)
    per_epoch = -(-len(first.dataset) // 8)
    # steps after the search count as those of a second task, as they follow the first one
    assert lost.gap_epochs == 1
    assert lost.steps == [3 * per_epoch, 2 * per_epoch, 0, 0]
    assert kept.gap_epochs is None
    assert kept.steps == [3 * per_epoch, 3 * per_epoch, 0, 0]


def test_the_gap_is_the_mean_logit_of_wrong_pairs(tiny: Build, source: Source) -> None:
    strategy, (task,) = learn(tiny, source, epochs=1)
    start = tiny()
    start.add_classes(list(source.class_names), strategy.templates)
    images, labels = pixels(task)
    with torch.no_grad():
        logits = start(images)[:, strategy.task_classes]
    wrong = [row[j] for row, y in zip(logits, labels, strict=True) for j in range(2) if j != y]
    assert strategy.task_classes == [0, 1]
    torch.testing.assert_close(strategy.gap, float(torch.stack(wrong).mean()), rtol=1e-4, atol=1e-4)


def test_one_pair_of_factors_learns_all_tasks(tiny: Build, source: Source) -> None:
    strategy, _ = learn(tiny, source, 2, tolerance=1e9, rank=2)
    one, _ = learn(tiny, source, 1, tolerance=1e9, rank=2)
    start = tiny()
    for name, value in strategy.selection.items():
        query, key, of_value = (value - start.get_parameter(name)).detach().chunk(3)
        assert not query.any()
        a, b = (strategy.last_factors[f"{name}.{f}"] for f in "AB")
        for i, change in enumerate((key, of_value)):
            assert torch.linalg.matrix_rank(change, atol=1e-6) == 2
            torch.testing.assert_close(change, b[i] @ a[i] / 2, rtol=0, atol=1e-6)
        assert not torch.equal(value, one.model.get_parameter(name))


def test_the_classifier_is_trained_as_in_plain_pytorch() -> None:
    torch.manual_seed(0)
    features, targets = F.normalize(torch.randn(10, 5), dim=-1), torch.arange(10) % 3
    given = cosine_rows(
        features, targets, 3, lr=0.1, epochs=2, batch_size=4,
        draws=torch.Generator().manual_seed(7),
    )  # fmt: skip
    draws, head = torch.Generator().manual_seed(7), torch.nn.Linear(5, 3, bias=False)
    with torch.no_grad():
        for i in range(3):
            head.weight[i] = features[i::3].mean(0)
    adam = torch.optim.Adam(head.parameters())
    step = 0
    for _ in range(2):
        order = torch.randperm(10, generator=draws)
        for i in (0, 4, 8):
            rate = 0.001 + 0.099 * (1 + torch.cos(torch.tensor(torch.pi * step / 6))) / 2
            adam.param_groups[0]["lr"] = float(rate)
            picked = order[i : i + 4]
            cosines = F.cosine_similarity(features[picked, None], head.weight[None], dim=-1)
            adam.zero_grad()
            F.nll_loss(cosines.log_softmax(1), targets[picked]).backward()  # type: ignore[no-untyped-call]
            adam.step()
            step += 1
    torch.testing.assert_close(given, head.weight.detach(), rtol=1e-4, atol=1e-5)


def test_scores_mix_both_classifiers_and_the_head_starts_at_class_means(
    tiny: Build, source: Source
) -> None:
    strategy, (first, _) = learn(tiny, source, 2, epochs=1, head_lr=1e-12, head_weight=3.0)
    assert strategy.head is not None
    assert not strategy.head[4:].any()
    one, (first,) = learn(tiny, source, 1, epochs=1, head_lr=1e-12)
    assert one.head is not None
    torch.testing.assert_close(strategy.head[:2], one.head[:2])  # kept as it was
    images, labels = pixels(first)
    with torch.no_grad():
        features = one.model.image_features(images)
        torch.testing.assert_close(one.head[0], features[labels == 0].mean(0), rtol=0, atol=1e-6)
        model, test = strategy.model, source.test.images
        image, text = model.image_features(test), model.text_features([0, 1, 2, 3])
        by_text = (image @ text.T * model.logit_scale).softmax(1).softmax(1)
        cosines = F.cosine_similarity(image[:, None], strategy.head[None, :4], dim=-1)
        scores = strategy.scores(test)
        joint = strategy.joint_scores(test, text[:1])
    torch.testing.assert_close(scores[:, :4], by_text / 4 + cosines.softmax(1) * 0.75)
    assert scores[:, 4:].eq(-torch.inf).all()
    torch.testing.assert_close(joint[:, 0], joint[:, -1])  # a name alone ranks as its class
    assert joint.shape == (len(test), 7)


def test_the_published_number_of_parameters() -> None:
    names, clip = chosen(MgClip, MgClipOptions())
    strategy: Any = object.__new__(MgClip)
    strategy.options, strategy.last_factors = MgClipOptions(), {}
    strategy.seeds = type("Seeds", (), {"init": 0})
    factors = strategy.new_factors({n: torch.empty(clip.get_parameter(n).shape) for n in names})
    assert sum(f.numel() for f in factors.values()) == 2 * 2 * 8 * 12 * (768 + 512) == 491_520
