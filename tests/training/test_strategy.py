"""The strategy surface: a bare PyTorch loop, plain Avalanche code, and what must not move."""

import ast
import copy
import dataclasses
import itertools
import math
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from avalanche.benchmarks import (
    benchmark_from_datasets,
    class_incremental_benchmark,
    nc_benchmark,
    with_classes_timeline,
)
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin, LwFPlugin, ReplayPlugin
from torch.utils.data import DataLoader, TensorDataset

from cl_clipfit import (
    CLIPClassifier,
    CLIPStrategy,
    Recipe,
    ScopeOptions,
    Source,
    UserError,
    build_scenario,
)
from cl_clipfit.clip import Preprocess
from cl_clipfit.data.streams import as_avalanche
from cl_clipfit.errors import StrategyWarning
from cl_clipfit.experiment import estimate
from cl_clipfit.training import loop
from cl_clipfit.training.features import Workload
from cl_clipfit.training.optimization import make_optimizer, make_schedule
from tests.support.methods import TwoGroups

Build = Callable[..., CLIPClassifier]


def bare_loop(model: CLIPClassifier, source: Source, tasks: list[list[int]]) -> None:
    """Train as TwoGroups does, in plain PyTorch."""
    for classes in tasks:
        own = torch.isin(source.train.labels, torch.tensor(classes))
        data = TensorDataset(source.train.images[own], source.train.labels[own])
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for n, p in named.items() if ".visual." not in n], "lr": 0.05},
                {"params": [p for n, p in named.items() if ".visual." in n]},
            ],
            lr=0.01,
            weight_decay=0.1,
        )
        loader = DataLoader(data, batch_size=5, shuffle=True)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * len(loader))
        for _ in range(2):
            for images, labels in loader:
                optimizer.zero_grad()
                logits = model(images, classes)
                F.cross_entropy(logits, labels - classes[0]).backward()
                optimizer.step()
                scheduler.step()


def test_training_equals_a_bare_pytorch_loop_bit_for_bit(tiny: Build, source: Source) -> None:
    recipe = Recipe(epochs=2, batch_size=5, lr=0.01, weight_decay=0.1)
    scenario = build_scenario("s", source, tasks=3)
    strategy = TwoGroups(model=tiny(), class_names=source.class_names, recipe=recipe)
    pristine = copy.deepcopy(strategy.model)
    torch.manual_seed(3)
    for experience in scenario.benchmark.train_stream:
        strategy.train(experience, eval_streams=[])
    reference = copy.deepcopy(pristine)
    for name, parameter in reference.named_parameters():
        parameter.requires_grad_(name in strategy.selection)
    torch.manual_seed(3)
    bare_loop(reference, source, scenario.task_classes)
    expected = reference.state_dict()
    moved = 0
    for name, value in strategy.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
        moved += not torch.equal(value, pristine.state_dict()[name])
    assert moved == len(strategy.selection) == 2 + 2 * 5 + 2


def test_the_optimiser_holds_the_selection_alone_and_is_fresh(tiny: Build, source: Source) -> None:
    scenario = build_scenario("s", source, tasks=2)
    strategy = TwoGroups(model=tiny(), class_names=source.class_names, recipe=Recipe(epochs=1))
    held = []
    for experience in scenario.benchmark.train_stream:
        strategy.train(experience)
        held.append(strategy.optimizer)
    assert held[0] is not held[1]
    for optimizer in held:
        inside = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert inside == {id(p) for p in strategy.selection.values()}
        assert len(optimizer.state) == len(strategy.selection)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_optimiser_needs_no_compiler_and_steps_as_pytorchs(
    kind: Literal["sgd", "adamw"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TorchDynamo takes as long to import as the core of PyTorch, and a command trains at once."""
    theirs = torch.optim.SGD if kind == "sgd" else torch.optim.AdamW
    rest = {"momentum": 0.9} if kind == "sgd" else {}
    ours, plain = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    reference = theirs([plain], 0.1, weight_decay=0.2, **rest)
    recipe = Recipe(optimizer=kind, lr=0.1, momentum=0.9, weight_decay=0.2)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch._dynamo", None)  # to import it is an error
        optimizer = make_optimizer(recipe, [{"params": [ours]}])
        schedule = make_schedule(recipe, optimizer, 5)
        for _ in range(3):
            optimizer.zero_grad()
            (ours**3).sum().backward()
            optimizer.step()
        schedule.step()
        optimizer.load_state_dict(optimizer.state_dict())
    for _ in range(3):
        reference.zero_grad()
        (plain**3).sum().backward()
        reference.step()
    assert isinstance(optimizer, theirs) and torch.is_grad_enabled()
    assert ours.requires_grad and torch.equal(ours, plain)


def test_hooks_are_called_when_promised(tiny: Build, source: Source) -> None:
    calls: list[str] = []

    class Recorder(TwoGroups):
        def label_space(self) -> list[int]:
            return self.seen_classes

        def compute_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            calls.append("loss")
            finite = torch.isfinite(logits).any(0).nonzero().flatten().tolist()
            assert finite == self.seen_classes
            return super().compute_loss(logits, labels)

        def after_step(self) -> None:
            calls.append("step")

        def after_task(self) -> None:
            calls.append(f"task {self.tasks_seen}")

    scenario = build_scenario("s", source, tasks=2)
    recipe = Recipe(epochs=1, batch_size=12)
    strategy = Recorder(model=tiny(), class_names=source.class_names, recipe=recipe)
    strategy.train(scenario.benchmark.train_stream, eval_streams=[])
    once = ["loss", "step"] * 2
    assert calls == [*once, "task 1", *once, "task 2"]


def test_plain_avalanche_code_with_unordered_labels(tiny: Build, source: Source) -> None:
    """Avalanche keeps original labels; its own metrics must agree with ours."""
    benchmark = class_incremental_benchmark(
        {"train": as_avalanche(source.train), "test": as_avalanche(source.test)},
        num_experiences=3,
        class_order=[4, 1, 5, 0, 3, 2],
    )
    evaluator = EvaluationPlugin(
        accuracy_metrics(experience=True), loss_metrics(stream=True), loggers=[]
    )
    strategy = TwoGroups(
        model=tiny(), class_names=source.class_names, recipe=Recipe(epochs=3), evaluator=evaluator
    )
    for task, experience in enumerate(benchmark.train_stream, 1):
        strategy.train(experience, eval_streams=[])
        measured = strategy.eval(benchmark.test_stream)
        scores = strategy.score_all(source.test.images)
        seen = torch.tensor(strategy.seen_classes)
        chosen = seen[scores[:, seen].argmax(1)]
        assert len(seen) == 2 * task
        for exp in benchmark.test_stream:
            own = torch.isin(source.test.labels, torch.tensor(list(exp.classes_in_this_experience)))
            expected = (chosen[own] == source.test.labels[own]).float().mean().item()
            key = f"Top1_Acc_Exp/eval_phase/test_stream/Exp{exp.current_experience:03d}"
            assert measured[key] == pytest.approx(expected)
    assert torch.isfinite(torch.tensor(measured["Loss_Stream/eval_phase/test_stream"]))


def test_an_empty_selection_and_a_label_without_name_are_errors(
    tiny: Build, source: Source
) -> None:
    scenario = build_scenario("s", source, tasks=2)
    with pytest.raises(ValueError, match="selects no parameter"):
        CLIPStrategy(model=tiny(), class_names=source.class_names).train(
            scenario.benchmark.train_stream
        )
    with pytest.raises(ValueError, match="label 2 has no name"):
        TwoGroups(model=tiny(), class_names=source.class_names[:2]).train(
            scenario.benchmark.train_stream
        )


def test_features_of_the_step_need_no_second_pass(tiny: Build, source: Source) -> None:
    """What a distillation term over all seen classes needs: text encoded once, with gradients."""
    passes: list[int] = []

    class Distilled(TwoGroups):
        def text_space(self) -> list[int]:
            return self.seen_classes

        def compute_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            assert self.features is not None
            assert self.features.classes == self.seen_classes
            finite = torch.isfinite(logits).any(0).nonzero().flatten().tolist()
            assert finite == self.task_classes
            anchors = self.model.zero_shot_text_features[self.features.classes]
            distance = 1 - (self.features.text * anchors).sum(1).mean()
            assert distance.requires_grad
            return super().compute_loss(logits, labels) + 8 * distance

    scenario = build_scenario("s", source, tasks=2)
    recipe = Recipe(epochs=1, batch_size=24)
    strategy = Distilled(model=tiny(), class_names=source.class_names, recipe=recipe)
    encode = strategy.model.encode_prompts
    vars(strategy.model)["encode_prompts"] = lambda tokens, **k: (
        passes.append(len(tokens)) or encode(tokens, **k)
    )
    strategy.train(scenario.benchmark.train_stream, eval_streams=[])
    assert passes == [3, 6]
    loss = strategy.training_loss(source.train.images[-8:], source.train.labels[-8:])
    assert loss.requires_grad


def test_terms_of_the_loss_are_those_of_the_step(tiny: Build, source: Source) -> None:
    class Held(CLIPStrategy):
        def trainable(self) -> Any:
            return [self.model.clip.ln_final.weight]

        def compute_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            loss = super().compute_loss(logits, labels)
            losses.append(loss.item())
            loss += self.term("half", 0.5 * loss.detach())  # in place: the first term stays
            return loss if self.task_steps else loss + self.term("first", loss.new_tensor(8.0))

    class Adds(SupervisedPlugin):
        def before_backward(self, strategy: Any, **kwargs: object) -> None:
            strategy.loss += added.pop(0)

    losses: list[float] = []
    added, read = [2.0, 0.0], []
    scenario = build_scenario("s", source, tasks=3)
    strategy = Held(
        model=tiny(), class_names=scenario.class_names, recipe=Recipe(epochs=2, batch_size=64),
        plugins=[Adds(), loop.StepCallback(lambda s: read.append(s.read_terms()))],
    )  # fmt: skip
    strategy.train(scenario.benchmark.train_stream[0], eval_streams=[])
    (first, second) = losses
    assert read == [
        pytest.approx({
            "loss": 1.5 * first + 10, "cross-entropy": first, "half": first / 2, "first": 8.0,
            "plug-ins": 2.0,
        }),
        pytest.approx({"loss": 1.5 * second, "cross-entropy": second, "half": second / 2}),
    ]  # fmt: skip


def test_a_method_without_gradients_may_learn_after_a_task(tiny: Build, source: Source) -> None:
    class Counting(CLIPStrategy):
        learning = "closed-form"

        def after_task(self) -> None:
            self.learned = list(self.seen_classes)

    scenario = build_scenario("s", source, tasks=2)
    strategy = Counting(model=tiny(), class_names=source.class_names)
    strategy.train(scenario.benchmark.train_stream, eval_streams=[])
    assert strategy.learned == list(range(6))
    assert strategy.selection == {}


def test_what_cannot_be_meant_is_an_error(tiny: Build, source: Source) -> None:
    model = tiny()
    model.add_classes(["cat", "dog"])
    with pytest.raises(ValueError, match="begin with the 2"):
        TwoGroups(model=model, class_names=["a", "b", "c"])
    bare = benchmark_from_datasets(train=[as_avalanche(source.train)])
    with pytest.raises(ValueError, match="with_classes_timeline"):
        TwoGroups(model=tiny(), class_names=source.class_names).train(bare.train_stream)


def test_scoring_in_batches_equals_scoring_at_once(tiny: Build, source: Source) -> None:
    strategy = TwoGroups(model=tiny(), class_names=source.class_names, eval_mb_size=7)
    with torch.no_grad():
        at_once = strategy.model(source.test.images)
    torch.testing.assert_close(strategy.score_all(source.test.images), at_once)
    probe = strategy.score_probe(source.test.images, source.class_names, source.templates)
    torch.testing.assert_close(probe, at_once)


def test_training_images_are_augmented_and_test_images_are_not(tiny: Build, source: Source) -> None:
    seen: list[torch.Tensor] = []

    class Watched(TwoGroups):
        def training_logits(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images.clone())
            return super().training_logits(images)

    recipe = Recipe(epochs=2, batch_size=24, augmentation="crop-flip", crop_scale=0.3)
    scenario = build_scenario("s", source, tasks=2)
    strategy = Watched(model=tiny(), class_names=source.class_names, recipe=recipe)
    before = strategy.score_all(source.test.images)
    torch.manual_seed(0)
    strategy.train(scenario.benchmark.train_stream[0], eval_streams=[])
    assert [images.shape for images in seen] == [(24, 3, 16, 16)] * 2
    assert all(images.dtype == torch.uint8 for images in seen)
    own = {image.numpy().tobytes() for image in source.train.images}
    assert sum(image.numpy().tobytes() in own for images in seen for image in images) < 12
    assert not torch.equal(before, strategy.score_all(source.test.images))
    scores = strategy.model(source.test.images).detach()
    torch.testing.assert_close(strategy.score_all(source.test.images), scores)
    # what is drawn for a crop does not change the order of the data
    state = torch.get_rng_state()
    loop._augment(strategy, source.train.images)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="augmentation needs uint8"):
        loop._augment(strategy, source.train.images.float())


def test_a_small_last_batch_is_left_out_but_never_the_only_one(tiny: Build, source: Source) -> None:
    steps: list[int] = []

    class Counting(TwoGroups):
        def after_step(self) -> None:
            steps.append(len(self.mb_y))

    for batch_size, expected in ((20, [20]), (24, [24]), (50, [24])):
        steps.clear()
        recipe = Recipe(epochs=1, batch_size=batch_size, drop_last=True)
        strategy = Counting(model=tiny(), class_names=source.class_names, recipe=recipe)
        stream = build_scenario("s", source, tasks=2).benchmark.train_stream
        strategy.train(stream[0], eval_streams=[])
        assert steps == expected


def test_the_schedule_follows_the_loader_that_plugins_leave(tiny: Build, source: Source) -> None:
    rates: list[float] = []

    class Watched(TwoGroups):
        def after_step(self) -> None:
            rates.append(self.optimizer.param_groups[1]["lr"])

    scenario = build_scenario("s", source, tasks=3)
    strategy = Watched(
        model=tiny(),
        class_names=source.class_names,
        recipe=Recipe(epochs=2, batch_size=4, lr=1.0),
        plugins=[ReplayPlugin(mem_size=32)],
    )
    strategy.label_space = lambda: strategy.seen_classes  # type: ignore[method-assign]
    strategy.train(scenario.benchmark.train_stream, eval_streams=[])
    falls = [later < earlier for earlier, later in itertools.pairwise(rates)]
    assert falls.count(False) == 2  # where the second and the third task begin
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_origins_must_be_writable_and_cannot_hide_the_hash(source: Source) -> None:
    with pytest.raises(ValueError, match="origin"):
        dataclasses.replace(source, origin={"file": Path("x")})
    named = dataclasses.replace(source, origin={"sha256": "mine", "kind": "archive"})
    scenario = build_scenario("s", named, tasks=2)
    assert scenario.origin == {"sha256": source.sha256, "kind": "archive"}


def test_the_estimate_counts_images_and_prompts(
    tiny: Build, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worked out by hand: 32 timed images and 6 timed prompts take a second each."""
    monkeypatch.setattr(estimate, "_seconds", lambda function: 1.0)
    monkeypatch.setattr(estimate, "_TIMED_IMAGES", 32)
    monkeypatch.setattr(estimate, "_TIMED_PROMPTS", 32)
    monkeypatch.setattr(estimate, "_BYTES_PER_SECOND", math.inf)
    scenario = build_scenario("s", source, tasks=3)  # 48 test images, 3 tasks of 16 training images
    recipe = Recipe(epochs=2, batch_size=8)
    strategy = TwoGroups(model=tiny(), class_names=source.class_names, recipe=recipe)
    plan: Any = SimpleNamespace(recipe=recipe)
    scoring = 48 / 32 + 6 / 6
    training = 3 * (2 * 48 / 32 + 12 * 2 / 6)  # 12 steps, with the prompts of a task's classes
    assert estimate.estimate_seconds(plan, scenario, strategy, {}) == 4 * scoring + training
    strategy.label_space = lambda: strategy.seen_classes  # type: ignore[method-assign]
    training = 3 * (2 * 48 / 32 + 12 * 4 / 6)  # 2, 4 and 6 classes
    assert estimate.estimate_seconds(plan, scenario, strategy, {}) == 4 * scoring + training
    strategy.model.recompute = True  # one more forward pass in each step
    again = estimate.estimate_seconds(plan, scenario, strategy, {})
    assert again == pytest.approx(4 * scoring + 4 / 3 * training)
    strategy.model.recompute = False
    work = Workload(2, 2, sampled=((40, 512), (3, 8)))  # a task has 16 images, not 512
    strategy.workload = lambda: work  # type: ignore[method-assign]
    sampled = 3 * (40 * 16 + 3 * 8) / 32
    training += sampled
    assert estimate.estimate_seconds(plan, scenario, strategy, {}) == 4 * scoring + training
    first = dataclasses.replace(work, tasks=1)
    strategy.workload = lambda: first  # type: ignore[method-assign]
    alone = 3 * (2 * 16 / 32 + 4 * 2 / 6) + sampled
    assert estimate.estimate_seconds(plan, scenario, strategy, {}) == 4 * scoring + alone
    strategy.workload = lambda: work  # type: ignore[method-assign]
    strategy.select()
    monkeypatch.setattr(estimate, "_BYTES_PER_SECOND", 1.0)
    values = 4 * sum(p.numel() for p in strategy.selection.values())
    written = 3 * values * (3 * 2 + 2)  # three tasks, of two epochs each
    slow = estimate.estimate_seconds(plan, scenario, strategy, {})
    assert slow == pytest.approx(4 * scoring + training + written)
    strategy.learning = "none"  # type: ignore[misc]
    plan.recipe = None
    assert estimate.estimate_seconds(plan, scenario, strategy, {}) == scoring


class Mixed(CLIPStrategy):
    """Trains the biases of the image tower's LayerNorms, over the task's classes or those seen."""

    options_class = ScopeOptions

    def trainable(self) -> list[torch.nn.Parameter]:
        modules = self.model.clip.visual.modules()
        return [m.bias for m in modules if isinstance(m, torch.nn.LayerNorm)]


def of_two_tasks(source: Source) -> Any:
    """Return Avalanche's own benchmark, with its labels of tasks: classes 0 to 2, then 3 to 5."""
    return class_incremental_benchmark(
        {"train": as_avalanche(source.train), "test": as_avalanche(source.test)},
        num_experiences=2, class_order=[0, 1, 2, 3, 4, 5],
    )  # fmt: skip


class OldLogits(SupervisedPlugin):
    """Adds a loss on the logits of class 0, as distillation from an earlier model does."""

    def before_backward(self, strategy: Any, *args: object, **kwargs: object) -> None:
        if strategy.tasks_seen:
            strategy.loss += strategy.mb_output[:, 0].square().mean()


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("plugin", [lambda: ReplayPlugin(mem_size=12), OldLogits])
def test_a_plugin_that_needs_other_classes_is_told_which_and_how(
    plugin: Any, skip: bool, tiny: Build, source: Source
) -> None:
    benchmark = of_two_tasks(source)

    def train(**settings: Any) -> Any:
        torch.manual_seed(0)
        strategy = Mixed(
            model=tiny(), class_names=source.class_names, recipe=Recipe(epochs=1, batch_size=12),
            plugins=[plugin()], **settings,
        )  # fmt: skip
        strategy.watch.skip = skip
        strategy.train(benchmark.train_stream, eval_streams=[])
        return strategy

    with pytest.raises(UserError, match=r"task 2, step 1.*label \d \('.*outside of label_space"):
        train()
    with pytest.raises(UserError, match="set ce_scope=seen") as raised:
        train()
    assert "learning rate" not in str(raised.value)
    assert torch.isfinite(train(options=ScopeOptions(ce_scope="seen")).loss)


def test_lwf_distils_from_logits_of_earlier_classes(tiny: Build, source: Source) -> None:
    """Independent of the above, with Avalanche's own plugin, which needs labels of tasks."""

    def train(scope: str) -> None:
        data = as_avalanche(source.train)
        benchmark = nc_benchmark(data, data, n_experiences=2, task_labels=False, shuffle=False)
        Mixed(
            model=tiny(), class_names=source.class_names, recipe=Recipe(epochs=1),
            plugins=[LwFPlugin()], options=ScopeOptions(ce_scope=scope),
        ).train(benchmark.train_stream, eval_streams=[])  # fmt: skip

    train("seen")
    with pytest.raises(UserError, match=r"LwFPlugin.*label 0 \('.*-inf.*ce_scope=seen"):
        train("task")


def test_the_loss_of_evaluation_ranks_the_classes_seen_and_the_image_own(
    tiny: Build, source: Source
) -> None:
    benchmark = of_two_tasks(source)
    evaluator = EvaluationPlugin(loss_metrics(experience=True), loggers=[])
    strategy = TwoGroups(
        model=tiny(), class_names=source.class_names, recipe=Recipe(epochs=1), evaluator=evaluator
    )
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    measured = list(strategy.eval(benchmark.test_stream).values())
    scores, labels = strategy.score_all(source.test.images), source.test.labels
    losses = [
        -F.log_softmax(row[[0, 1, 2, *([label] if label > 2 else [])]], 0)[min(label, 3)]
        for row, label in zip(scores, labels.tolist(), strict=True)
    ]
    for task, loss in enumerate(measured):
        expected = torch.stack([x for x, y in zip(losses, labels, strict=True) if y // 3 == task])
        assert loss == pytest.approx(float(expected.mean()), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.int8, torch.bool])
def test_integers_other_than_uint8_are_refused(
    dtype: torch.dtype, tiny: Build, source: Source
) -> None:
    strategy = TwoGroups(model=tiny(), class_names=source.class_names)
    for use in (strategy.model.image_features, strategy.score_all):
        with pytest.raises(UserError, match="pass uint8"):
            use(source.test.images.to(dtype))


def test_float_images_of_another_range_are_warned_of_once(tiny: Build, source: Source) -> None:
    images = source.test.images
    whole, unit = images.float(), images.float() / 255
    cases = {
        "lie within -1.8 and 2.1": whole, "between 0 and 1": unit, "reach from -": whole - 127,
    }  # fmt: skip
    normalised = [("", tiny().preprocess(images)), ("", unit * 2 - 1)]
    for text, floats in [*cases.items(), *normalised]:
        model = tiny()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for batch in floats.split(8):
                model.image_features(batch)
        assert [text in str(w.message) for w in caught] == [True] * bool(text), text
    assert not Preprocess((8, 8), (0.0,) * 3, (1.0,) * 3).doubt(unit)  # models that take 0 to 1
    assert Preprocess((8, 8), (0.0,) * 3, (1.0,) * 3).doubt(whole)


def test_the_range_is_not_read_at_every_step(
    tiny: Build, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading it waits for a GPU."""
    checks: list[int] = []
    monkeypatch.setattr(Preprocess, "doubt", lambda self, images: checks.append(1) or "")
    model = tiny()
    data = dataclasses.replace(source.train)
    object.__setattr__(data, "images", model.preprocess(source.train.images))
    benchmark = with_classes_timeline(benchmark_from_datasets(train=[as_avalanche(data)]))
    strategy = TwoGroups(
        model=model, class_names=source.class_names, recipe=Recipe(epochs=3, batch_size=4)
    )
    strategy.train(benchmark.train_stream, eval_streams=[])
    assert strategy.task_steps > 30
    assert len(checks) == 1


def test_a_module_of_ones_own_belongs_on_the_model(tiny: Build, source: Source) -> None:
    class Adapted(TwoGroups):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.adapter = torch.nn.Linear(16, 16)

        def trainable(self) -> list[torch.nn.Parameter]:
            return list(self.adapter.parameters())

    strategy = Adapted(model=tiny(), class_names=source.class_names)
    stream = build_scenario("s", source, tasks=2).benchmark.train_stream
    with pytest.raises(ValueError, match=r"on the strategy's self\.model"):
        strategy.train(stream[0])
    strategy.model.adapter = strategy.adapter
    strategy.select()
    assert set(strategy.selection) == {"adapter.weight", "adapter.bias"}


def test_labels_that_do_not_index_the_names_are_refused(tiny: Build, source: Source) -> None:
    strategy = TwoGroups(model=tiny(), class_names=source.class_names)
    ignored = dataclasses.replace(source.train, labels=source.train.labels - 100)
    benchmark = with_classes_timeline(benchmark_from_datasets(train=[as_avalanche(ignored)]))
    with pytest.raises(ValueError, match="label -100 has no name"):  # cross-entropy ignores it
        strategy.train(benchmark.train_stream)
    data = as_avalanche(source.train)
    many = {"n_experiences": 2, "task_labels": False, "seed": 1}
    benchmark = nc_benchmark(data, data, class_ids_from_zero_in_each_exp=True, **many)
    with pytest.raises(ValueError, match="start at 0 in every experience"):
        strategy.train(benchmark.train_stream)
    benchmark = nc_benchmark(data, data, class_ids_from_zero_from_first_exp=True, **many)
    with pytest.warns(StrategyWarning, match="order of arrival"):
        strategy.train(benchmark.train_stream, eval_streams=[])
    assert len(strategy.warnings) == 1


def test_a_criterion_would_have_no_effect(tiny: Build, source: Source) -> None:
    smooth = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    with pytest.raises(ValueError, match="override compute_loss"):
        TwoGroups(model=tiny(), class_names=source.class_names, criterion=smooth)


def test_the_avalanche_block_of_the_readme_runs_and_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "ReplayPlugin" in block]
    short = block.replace('"split-digits", tasks=5', '"split-digits", tasks=2, limit=4')
    assert short != block
    exec(short, {})
    lines = capsys.readouterr().out.splitlines()
    losses = [ast.literal_eval(line)["Loss_Stream/eval_phase/test_stream"] for line in lines]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
