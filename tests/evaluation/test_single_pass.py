"""Each image is encoded once for each set of weights of the image tower, and features stay right.

Images are counted where they enter the image tower: in `CLIPClassifier.image_features`.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import evaluate
from cl_clipfit import (
    CLIPClassifier,
    CLIPStrategy,
    MergingStrategy,
    PerTaskStrategy,
    Recipe,
    Source,
    build_scenario,
    merging,
)
from cl_clipfit.clip import ModelIdentity
from cl_clipfit.config.command import StreamSettings
from cl_clipfit.evaluation.feature_cache import FeatureCache
from cl_clipfit.evaluation.feature_reuse import encodes_as, leaves_images
from cl_clipfit.evaluation.fisher import diagonal_fisher
from cl_clipfit.evaluation.frozen_features import FrozenImages
from cl_clipfit.evaluation.landscape import (
    POINTS,
    Sample,
    encode_shared,
    loss_and_accuracy,
    profiles,
)
from cl_clipfit.evaluation.scoring import Scorer, score
from cl_clipfit.experiment.build import select_first
from cl_clipfit.experiment.run import Run
from cl_clipfit.experiment.run_plan import RunPlan
from cl_clipfit.experiment.stream_plan import Compute
from cl_clipfit.registry import Registry
from cl_clipfit.runtime.progress import Progress
from cl_clipfit.storage.run_folder import RunFolder
from cl_clipfit.strategies.clipfit import ClipFit, ClipFitOptions
from cl_clipfit.strategies.coop import CoOp
from cl_clipfit.strategies.mergetune import MergeTune, MergeTuneOptions
from tests.support.tiny import build_source

Build = Callable[..., CLIPClassifier]
REGISTRY = Registry([Path("examples/image_norms.py")])
CLASSES = {e.name: REGISTRY.strategy_class(e.name) for e in REGISTRY.entries("strategies")}
TRAINED = [name for name, cls in CLASSES.items() if cls.learning == "gradient"]
TASKS, TEST, PROBE = 2, 48, 15  # images of the stream, and of each of two probes
ROW = TEST + 2 * PROBE


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Collect the sizes of the batches that enter an image tower."""
    found: list[int] = []
    real = CLIPClassifier.image_features

    def counting(self: CLIPClassifier, images: Tensor) -> Tensor:
        cached = self._given_images is not None and images is self._given_images[0]
        if images.dim() == 4 and not cached:
            found.append(len(images))
        return real(self, images)

    monkeypatch.setattr(CLIPClassifier, "image_features", counting)
    yield found


@pytest.fixture
def source() -> Source:
    """Return a data set whose test images are not its training images."""
    return dataclasses.replace(build_source(), test=build_source(seed=9).test)


def named(build: Build) -> CLIPClassifier:
    model = build()
    model.identity = ModelIdentity("tiny", "random", "0")
    return model


def make_run(
    name: str, build: Build, source: Source, tmp_path: Path, encoder: FrozenImages | None,
    model: CLIPClassifier, options: Any = None, cls: type[CLIPStrategy] | None = None,
) -> Run:  # fmt: skip
    """Return a run of a strategy over two tasks, with two probes."""
    entry, cls = REGISTRY.get("strategies", name), cls or CLASSES[name]
    options = options or entry.options_class()()
    base = None
    if (name_below := getattr(options, cls.base_option or "", "none")) != "none":
        below = REGISTRY.get("strategies", name_below)
        base = RunPlan(below.name, below, CLASSES[below.name], below.options_class()(), None)
        cls = cls.over(base.cls)
    recipe = None if cls.learning == "none" else Recipe(epochs=1, batch_size=24, lr=0.02)
    plan = RunPlan(name, entry, cls, options, recipe, base=base)
    stream: Any = SimpleNamespace(
        compute=Compute(torch.device("cpu")),
        settings=StreamSettings(),
        on_nan="stop",
        keeps_predictions=True,
    )
    probes = {f"probe {i}": build_source(5, 3, seed=i) for i in (1, 2)}
    scenario = build_scenario("s", source, tasks=TASKS)
    folder: Any = RunFolder(tmp_path, "s", name, 0, "")
    folder.path.mkdir(exist_ok=True)
    return Run(stream, plan, scenario, model, probes, folder, Progress(), encoder)


def make_encoder(model: CLIPClassifier, tmp_path: Path) -> FrozenImages:
    cache = FeatureCache(tmp_path / "features")
    return FrozenImages(model, torch.device("cpu"), Progress(), cache)


def rows(run: Run, encoded: list[int]) -> list[int]:
    """Train, and return the images encoded by each evaluation."""
    found = []
    real = run.evaluator.evaluate

    def evaluate() -> None:
        before = sum(encoded)
        real()
        found.append(sum(encoded) - before)

    run.evaluator.evaluate = evaluate  # type: ignore[method-assign]
    run.learner.announced = False
    select_first(run.plan, run.strategy, run.scenario.task_classes[0])
    run._run_stream(None)
    return found


@pytest.mark.parametrize("name", TRAINED)
def test_a_row_of_all_tables_takes_one_pass_for_each_image_tower(
    name: str, tiny: Build, source: Source, tmp_path: Path, encoded: list[int]
) -> None:
    model = named(tiny)
    run = make_run(name, tiny, source, tmp_path, make_encoder(model, tmp_path), model)
    before = sum(encoded)
    found = rows(run, encoded)
    if "image" not in run.plan.cls.towers:  # encoded when the run was made: with training images
        # Class tokens come from `image_rows`, which is not counted here.
        assert before == (0 if run.plan.cls.class_tokens else ROW + 48)
        assert found == [0] * (TASKS + 1)
        return
    if issubclass(CLASSES[name], PerTaskStrategy):  # for the choice of the weights, and with them
        assert found == [ROW] + [run.strategy.workload().test_passes * ROW] * TASKS
        return
    sets = 1 + len(run.strategy.compared())  # of weights, all with an image tower of their own
    assert sets == run.strategy.workload().test_passes
    assert before == 0
    if issubclass(CLASSES[name], MergingStrategy) and found[1] == ROW:
        found[1] *= sets  # the merge of one task is what it tuned
    assert found == [ROW] + [sets * ROW] * TASKS
    for board in (run.record.board, *run.record.compared.values()):
        assert len(board.tables.seen) == len(board.tables.task_aware) == TASKS + 1
        assert {len(values) for values in board.probes.values()} == {TASKS + 1}


@pytest.mark.parametrize("name", ["clipfit", "full", "mergetune", "image-norms", "stack"])
def test_the_row_before_training_is_that_of_zero_shot_in_the_same_command(
    name: str, tiny: Build, source: Source, tmp_path: Path, encoded: list[int]
) -> None:
    model = named(tiny)
    encoder = make_encoder(model, tmp_path)
    make_run("zero-shot", tiny, source, tmp_path, encoder, model)
    assert sum(encoded) == ROW
    shared = make_run(name, tiny, source, tmp_path, encoder, model)
    alone = make_run(name, tiny, source, tmp_path, None, model)
    first, second = rows(shared, encoded), rows(alone, encoded)
    assert first[0] == (TEST if name == "stack" else 0)  # its scores are not those of CLIP
    assert second[0] == ROW
    assert first[1:] == second[1:]
    one, other = (run.record.board.summary() for run in (shared, alone))
    assert one == other
    assert (shared.evaluator._before is None, alone.evaluator._before is None) == (False, False)
    torch.testing.assert_close(
        shared.evaluator._before.test, alone.evaluator._before.test, rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize(
    ("own", "passes"), [({"layer_norms": "none"}, 0), ({"text_biases": "none"}, 1)]
)
def test_tuned_text_alone_needs_no_second_look_at_the_images(
    own: dict[str, Any], passes: int, tiny: Build, source: Source, tmp_path: Path,
    encoded: list[int],
) -> None:  # fmt: skip
    model = named(tiny)
    runs = [
        make_run("clipfit", tiny, source, tmp_path, encoder, model, ClipFitOptions(**own))
        for encoder in (make_encoder(model, tmp_path), None)
    ]
    assert rows(runs[0], encoded) == [ROW] + [passes * ROW] * TASKS
    assert rows(runs[1], encoded) == [ROW] * (TASKS + 1)
    tables = [run.record.board.summary()["all_classes_matrix"] for run in runs]
    assert tables[0] == tables[1]
    assert tables[0][0] != tables[0][-1]  # it has learned


def weights_of(strategy: CLIPStrategy, seed: int) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {
        n: p.detach() + 0.2 * torch.randn(p.shape, generator=draws)
        for n, p in strategy.selection.items()
    }


def test_weights_with_one_image_tower_share_a_pass(
    tiny: Build, source: Source, encoded: list[int]
) -> None:
    """Two sets differ in text alone, two in the image tower: what each scores alone is the same."""
    model, scenario = named(tiny), build_scenario("s", source, tasks=TASKS)
    probes = {"probe": build_source(5, 3, seed=1)}
    strategy = ClipFit(model=tiny(), class_names=scenario.class_names, recipe=Recipe())
    strategy.select()
    text = {n: v for n, v in weights_of(strategy, 1).items() if ".visual." not in n}
    image = {n: v for n, v in weights_of(strategy, 2).items() if ".visual." in n}
    other = {n: v for n, v in weights_of(strategy, 3).items() if ".visual." not in n}
    sets: dict[str, Mapping[str, Tensor]] = {
        "own": {}, "image": image, "text": text, "both": {**text, **image},
        "again": {**other, **{n: v.clone() for n, v in image.items()}},
    }  # fmt: skip
    found = dict(Scorer(strategy, scenario, probes, model).score(sets))
    assert sum(encoded) == 2 * (TEST + PROBE)
    assert set(found) == set(sets)
    for name, values in sets.items():
        alone = score(strategy, scenario, probes, values)
        torch.testing.assert_close(found[name].test, alone.test, rtol=1e-5, atol=1e-4)
        assert found[name].probes == alone.probes
    assert not torch.allclose(found["own"].test, found["text"].test, atol=0.1)
    assert not torch.allclose(found["image"].test, found["both"].test, atol=0.1)


# ---- methods that must not be given features ---------------------------------------------------


class Mirrored(CLIPStrategy):
    """Scores the image and its mirror image."""

    def trainable(self) -> Iterable[nn.Parameter]:
        return [self.model.clip.text_projection]

    def scores(self, images: Tensor) -> Tensor:
        return self.model(images) + self.model(images.flip(3))


class Adapted(CLIPStrategy):
    """Adds a parameter to what the image tower puts out; it starts away from doing nothing."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model.shift = nn.Parameter(torch.full((16,), 0.3))
        self.hook()

    def hook(self) -> None:
        self.model.clip.visual.register_forward_hook(lambda *given: given[2] + self.model.shift)

    def trainable(self) -> Iterable[nn.Parameter]:
        return [self.model.shift]


class Patched(Adapted):
    """The same without a hook."""

    def hook(self) -> None:
        visual = self.model.clip.visual
        real = visual.forward
        visual.forward = lambda images: real(images) + self.model.shift


class Wider(CLIPStrategy):
    """Changes a number of a module."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model.clip.visual.ln_pre.eps = 50.0

    def trainable(self) -> Iterable[nn.Parameter]:
        return [self.model.clip.text_projection]


class Swapped(Wider):
    """Puts another module in the place of one."""

    def __init__(self, **kwargs: Any) -> None:
        super(Wider, self).__init__(**kwargs)
        self.model.clip.visual.ln_post = nn.Identity()


@pytest.mark.parametrize("cls", [Mirrored, Adapted, Patched, Wider, Swapped])
def test_a_method_with_a_forward_pass_of_its_own_gets_its_own_features(
    cls: type[CLIPStrategy], tiny: Build, source: Source, tmp_path: Path
) -> None:
    """With and without an encoder, and with each set of weights alone, the scores are the same."""
    model = named(tiny)
    encoder = make_encoder(model, tmp_path)
    scenario = build_scenario("s", source, tasks=TASKS)
    encoder.encode(scenario, {}, train=False)
    strategy = cls(model=named(tiny), class_names=scenario.class_names, recipe=Recipe())
    plain = CLIPStrategy(model=named(tiny), class_names=scenario.class_names, recipe=Recipe())
    strategy.select()
    sets = {"own": {}, "one": weights_of(strategy, 1), "other": weights_of(strategy, 2)}
    found = dict(Scorer(strategy, scenario, {}, model, encoder).score(sets))
    zero_shot = plain.score_all(scenario.test.images)
    for name, values in sets.items():
        with torch.no_grad(), strategy.model.weights(values):
            strategy.model.eval()
            expected = strategy.scores(scenario.test.images)
        torch.testing.assert_close(found[name].test, expected, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(found["own"].test, zero_shot, atol=0.01)
    assert not torch.allclose(found["own"].test, found["one"].test, atol=0.01)


def test_a_copy_encodes_as_the_original_until_something_changes(tiny: Build) -> None:
    model, other = tiny(), tiny()
    assert encodes_as(model, other)
    with torch.no_grad():
        model.clip.visual.ln_pre.bias[0] += 1e-3
    assert not encodes_as(model, other)
    model = tiny()
    model.add_classes(["dog"])
    with torch.no_grad():
        model.clip.text_projection += 1  # of the text tower
    assert encodes_as(model, other)
    handle = model.clip.visual.ln_post.register_forward_hook(lambda *_: None)
    assert not encodes_as(model, other)
    handle.remove()
    model.precision = "bf16"
    assert not encodes_as(model, other)
    assert not encodes_as(tiny(seed=1), other)


def test_names_tell_whether_images_look_the_same(tiny: Build, source: Source) -> None:
    strategy = CLIPStrategy(model=tiny(), class_names=source.class_names)
    assert leaves_images(strategy, ["clip.text_projection", "context"])
    assert not leaves_images(strategy, ["clip.text_projection", "clip.visual.proj"])
    assert not leaves_images(strategy, ["adapter"])
    strategy.model.clip.visual.register_forward_hook(lambda *_: None)
    assert not leaves_images(strategy, ["clip.text_projection"])
    strategy.towers = ("text",)  # type: ignore[misc]
    assert leaves_images(strategy, ["clip.text_projection"])


# ---- statistics, landscapes, Fisher, distances --------------------------------------------------


def test_statistics_do_not_depend_on_what_was_encoded_beside(
    tiny: Build, source: Source, tmp_path: Path
) -> None:
    model = named(tiny)
    encoder = make_encoder(model, tmp_path)
    make_run("coop", tiny, source, tmp_path, encoder, model)  # encodes all training images
    found = []
    for own in (encoder, None):
        run = make_run("clipfit", tiny, source, tmp_path, own, model)
        run.strategy.select()
        run.strategy.model.load_values(weights_of(run.strategy, 1))  # it has learned
        found.append(run.bank._statistics(1))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_landscape_encodes_the_ranked_classes_alone(
    tiny: Build, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = ClipFit(model=tiny(), class_names=source.class_names, recipe=Recipe())
    strategy.select()
    own = torch.isin(source.train.labels, torch.tensor([4, 1]))
    sample = Sample(source.train.images[own], source.train.labels[own], [4, 1])
    asked: list[int] = []
    real = CLIPClassifier.encode_prompts

    def counting(self: CLIPClassifier, tokens: Any, normalize: bool = True) -> Tensor:
        asked.append(len(tokens))
        return real(self, tokens, normalize)

    monkeypatch.setattr(CLIPClassifier, "encode_prompts", counting)
    values = weights_of(strategy, 1)
    loss, accuracy = loss_and_accuracy(strategy, values, sample)
    assert asked == [2]
    with strategy.model.weights(values):
        scores = strategy.score_all(sample.images)[:, [4, 1]]
    targets = (sample.labels == 1).long()
    assert loss == pytest.approx(F.cross_entropy(scores, targets).item(), rel=1e-5)
    assert accuracy == pytest.approx(100 * (scores.argmax(1) == targets).float().mean().item())


@pytest.mark.parametrize(("own", "shared"), [({"layer_norms": "none"}, True), ({}, False)])
def test_lines_between_texts_encode_the_sample_once(
    own: dict[str, Any], shared: bool, tiny: Build, source: Source, encoded: list[int]
) -> None:
    strategy = ClipFit(
        model=tiny(), class_names=source.class_names, recipe=Recipe(), options=ClipFitOptions(**own)
    )
    strategy.select()
    points = {"zero-shot": strategy.zero_shot_point(), "host": weights_of(strategy, 1)}
    sample = Sample(source.train.images, source.train.labels, range(6))
    line = profiles(strategy, points, sample)["zero-shot to host"]
    assert sum(encoded) == 48 * (1 if shared else POINTS)
    middle = merging.interpolate(points["zero-shot"], points["host"], 0.5)
    with strategy.model.weights(middle):
        scores = strategy.score_all(source.train.images)
    assert line["loss"][5] == pytest.approx(F.cross_entropy(scores, sample.labels).item(), rel=1e-4)
    assert line["loss"][0] != pytest.approx(line["loss"][-1], rel=1e-3)
    assert (encode_shared(strategy, points["host"], sample) is sample) != shared


def test_a_first_task_measures_zero_shot_once(
    tiny: Build, source: Source, encoded: list[int]
) -> None:
    strategy = ClipFit(model=tiny(), class_names=source.class_names, recipe=Recipe())
    strategy.select()
    start = strategy.zero_shot_point()
    points = {"zero-shot": start, "previous": dict(start), "host": weights_of(strategy, 1)}
    sample = Sample(source.train.images, source.train.labels, range(6))
    found = profiles(strategy, points, sample, 3)
    assert sum(encoded) == 48 * 3
    assert found["previous to host"] == found["zero-shot to host"]


@pytest.mark.parametrize("host", [ClipFit, CoOp])
def test_the_fisher_encodes_each_prompt_once_and_is_that_of_single_passes(
    host: type[CLIPStrategy], tiny: Build, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes 0 to 3 are seen, 2 and 3 ranked: each encoded once, and the ranked with gradients."""
    strategy = host(model=tiny(), class_names=source.class_names, recipe=Recipe())
    strategy.task_classes, strategy.seen_classes = [2, 3], [0, 1, 2, 3]
    strategy.select()
    asked: list[tuple[int, bool]] = []
    real = CLIPClassifier.encode_prompts

    def counting(self: CLIPClassifier, tokens: Any, normalize: bool = True) -> Tensor:
        asked.append((len(tokens), torch.is_grad_enabled()))
        return real(self, tokens, normalize)

    images = source.train.images[16:22]
    with monkeypatch.context() as patch:
        patch.setattr(CLIPClassifier, "encode_prompts", counting)
        found = diagonal_fisher(strategy, images, torch.Generator().manual_seed(1))
    assert asked == [(4 if host is ClipFit else 2, False), (2, True)]
    assert "text_features" not in vars(strategy.model)
    draws = torch.Generator().manual_seed(1)
    expected = {name: torch.zeros_like(p) for name, p in strategy.selection.items()}
    for image in images:
        logits = strategy.training_logits(image[None])
        label = torch.multinomial(logits.softmax(1).detach(), 1, generator=draws)[0]
        gradients = torch.autograd.grad(
            F.cross_entropy(logits, label), list(strategy.selection.values())
        )
        for name, gradient in zip(expected, gradients, strict=True):
            expected[name] += gradient.square() / len(images)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-8)
        assert value.sum() > 0


def test_the_work_of_a_landscape_is_what_it_measures(tiny: Build, source: Source) -> None:
    passes = {}
    for host in (ClipFit, CoOp):
        strategy: Any = MergeTune.over(host)(
            model=tiny(), class_names=source.class_names, recipe=Recipe(),
            options=MergeTuneOptions(),
        )  # fmt: skip
        strategy.task_classes = strategy.seen_classes = [0, 1]
        strategy.select()
        ((passes[host], most),) = strategy.workload().sampled
        assert most == 512
    assert passes == {ClipFit: 4 + 4 * 4, CoOp: 1}


def test_the_benchmark_counts_one_pass_for_each_image(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--images", "7", "--classes", "4", "--batch-size", "3", "--repeats", "1"]
    evaluate.main(["--model", "mini", *sizes, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["encodings_per_image"] == 1
    speeds = found["images_per_second"]
    assert set(speeds) == {"stock", "ours_fp32", "ours_bf16"}
    assert min(speeds.values()) > 0
    assert found["speedup"]["ours_bf16/stock"] == speeds["ours_bf16"] / speeds["stock"]
    assert found["largest_difference_of_logits_fp32"] < 1e-3
    with pytest.raises(SystemExit):
        evaluate.main(["--classes", "1"])
    assert "--classes must be 2 or more" in capsys.readouterr().err
