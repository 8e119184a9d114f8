"""Encoding of many images: everywhere the same batches, and fewer images once memory runs out."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_clipfit import CLIPClassifier, CLIPStrategy, Recipe, Source, build_scenario
from cl_clipfit.cli.app import main
from cl_clipfit.clip import ModelIdentity
from cl_clipfit.commands import evaluate
from cl_clipfit.errors import UserError
from cl_clipfit.evaluation.feature_cache import FeatureCache
from cl_clipfit.evaluation.frozen_features import FrozenImages
from cl_clipfit.evaluation.landscape import Sample, encode_shared
from cl_clipfit.evaluation.scoring import Scorer
from cl_clipfit.experiment import estimate
from cl_clipfit.experiment.bank_writer import BankWriter
from cl_clipfit.strategies.clipfit import ClipFit
from tests.support.tiny import TINY

CPU = torch.device("cpu")
FROZEN_TOWER = [*TINY, "--strategy", "linear-head", "--epochs", "1"]


class Memory:
    """Memory of a device that holds so many images; None: any number.

    Attributes:
        room: images that fit.
        batches: sizes of the batches that fitted.
    """

    def __init__(self) -> None:
        self.room: int | None = None
        self.batches: list[int] = []


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """Let image towers run out of memory where a batch has more images than there is room for."""
    memory, encode = Memory(), CLIPClassifier.image_features

    def image_features(self: CLIPClassifier, images: Tensor) -> Tensor:
        if images.dim() == 4:
            if memory.room is not None and len(images) > memory.room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
            memory.batches.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(CLIPClassifier, "image_features", image_features)
    return memory


class Told:
    """A display that keeps what it was told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.counts: list[tuple[int, int]] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def count(self, label: str, done: int, total: int) -> None:
        self.counts.append((done, total))

    def stop(self) -> None:
        pass


def named(model: CLIPClassifier) -> CLIPClassifier:
    model.identity = ModelIdentity("tiny", "random", "0")
    return model


def many(source: Source, count: int = 300) -> Tensor:
    """Return more images than a batch of evaluation holds, no two of them the same."""
    images = source.test.images.repeat(-(-count // len(source.test)), 1, 1, 1)[:count].clone()
    images[:, 0, 0, 0] = torch.arange(count).to(torch.uint8)
    return images


# ---- five callers ----------------------------------------------------------------------------


def frozen(strategy: CLIPStrategy, images: Tensor, folder: Path) -> tuple[Tensor, list[str]]:
    told: Any = Told()
    encoder = FrozenImages(named(strategy.model), CPU, told, FeatureCache(folder))
    return encoder.features(images), told.warnings


def statistics(strategy: CLIPStrategy, images: Tensor, folder: Path) -> tuple[Tensor, list[str]]:
    strategy.task_sample = lambda *_, **__: (images, torch.arange(len(images)))  # type: ignore[assignment]
    writer: Any = SimpleNamespace(
        strategy=strategy, scenario=SimpleNamespace(of_task=lambda task: None)
    )
    # A class for each image: its mean is the image's features.
    return BankWriter._statistics(writer, 1)["means"], strategy.warnings


def scorer(strategy: CLIPStrategy, images: Tensor, folder: Path) -> tuple[Tensor, list[str]]:
    scenario: Any = SimpleNamespace(
        test=SimpleNamespace(images=images), train=SimpleNamespace(images=None),
        with_images=lambda train, test: test,
    )  # fmt: skip
    features, _ = Scorer(strategy, scenario, {}, strategy.model)._encoded({}, uses=2)
    return features, strategy.warnings  # type: ignore[return-value]


def landscape(strategy: CLIPStrategy, images: Tensor, folder: Path) -> tuple[Tensor, list[str]]:
    sample = Sample(images, torch.zeros(len(images), dtype=torch.long), [0, 1])
    return encode_shared(strategy, [], sample).images, strategy.warnings


def evaluation(strategy: CLIPStrategy, images: Tensor, folder: Path) -> tuple[Tensor, list[str]]:
    work: Any = SimpleNamespace(strategy=strategy)
    return evaluate.BankEvaluation._zero_shot_features(work, images), strategy.warnings


CALLERS = [frozen, statistics, scorer, landscape, evaluation]
Caller = Callable[[CLIPStrategy, Tensor, Path], tuple[Tensor, list[str]]]


@pytest.fixture
def strategy(tiny: Callable[..., CLIPClassifier], source: Source) -> CLIPStrategy:
    strategy = ClipFit(model=tiny(), class_names=source.class_names, recipe=Recipe())
    strategy.select()
    return strategy


@pytest.mark.parametrize("caller", CALLERS)
def test_batches_have_256_images_while_memory_lasts(
    caller: Caller, strategy: CLIPStrategy, source: Source, memory: Memory, tmp_path: Path
) -> None:
    images = many(source)
    with torch.no_grad():
        expected = torch.cat([strategy.model.image_features(x) for x in images.split(256)])
    memory.batches.clear()
    features, warnings = caller(strategy, images, tmp_path)
    assert torch.equal(features, expected)
    assert not features.requires_grad
    assert (memory.batches, warnings) == ([256, 44], [])


@pytest.mark.parametrize("caller", CALLERS)
def test_fewer_images_at_a_time_once_memory_runs_out(
    caller: Caller, strategy: CLIPStrategy, source: Source, memory: Memory, tmp_path: Path
) -> None:
    images = many(source)
    expected, _ = caller(strategy, images, tmp_path / "before")
    memory.room = 100
    memory.batches.clear()
    features, (warning,) = caller(strategy, images, tmp_path)
    torch.testing.assert_close(features, expected)
    assert memory.batches == [64] * 4 + [44]
    assert warning.startswith("out of memory in e") and "64 images at a time" in warning
    memory.room = 0
    with pytest.raises(UserError, match="out of memory with one image at a time: a smaller"):
        caller(strategy, many(source, 5), tmp_path / "after")


# ---- images of frozen towers -------------------------------------------------------------------


def test_progress_is_told_after_every_batch_that_fitted(
    strategy: CLIPStrategy, source: Source, memory: Memory, tmp_path: Path
) -> None:
    told: Any = Told()
    encoder = FrozenImages(named(strategy.model), CPU, told, FeatureCache(tmp_path))
    encoder.features(many(source, 520))
    assert told.counts == [(256, 520), (512, 520), (520, 520)]
    told.counts.clear()
    memory.room = 20
    encoder.features(many(source, 40))
    assert told.counts == [(20, 40), (40, 40)]


def test_features_of_smaller_batches_are_not_kept_for_other_commands(
    strategy: CLIPStrategy, source: Source, memory: Memory, tmp_path: Path
) -> None:
    """Their last bits may differ from those of a command that had the memory."""

    def encoder() -> tuple[FrozenImages, Any]:
        told: Any = Told()
        return FrozenImages(named(strategy.model), CPU, told, FeatureCache(tmp_path)), told

    images, others = many(source, 40), many(source, 30)
    memory.room = 16
    first, told = encoder()
    features = first.features(images)
    assert first.features(images) is features  # by this command, they are
    first.features(others)
    assert memory.batches == [10] * 7
    assert len(told.warnings) == 1  # once for all images that come
    assert not list(tmp_path.iterdir())
    memory.room = None
    encoder()[0].features(images)
    assert memory.batches[7:] == [40]
    encoder()[0].features(images)
    assert memory.batches[8:] == []


def test_a_command_encodes_frozen_images_with_fewer_at_a_time(
    memory: Memory, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("CL_CLIPFIT_DATA", str(tmp_path / "cache"))
    memory.room = 5
    assert main([*FROZEN_TOWER, "--quiet", "--output", str(tmp_path / "runs")]) == 0
    assert "out of memory in encoding" in capsys.readouterr().err
    assert set(memory.batches) <= {1, 2, 3, 4, 5}


def test_no_memory_for_one_frozen_image_is_said_in_one_line(
    memory: Memory, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CL_CLIPFIT_DATA", str(tmp_path / "cache"))
    memory.room = 0
    line = refused(*FROZEN_TOWER, "--quiet", "--output", tmp_path / "runs")
    assert "out of memory with one image at a time: a smaller model" in line


# ---- images of a batch with weights of their own tasks -----------------------------------------


def test_mixed_batches_shrink_once_memory_runs_out(
    strategy: CLIPStrategy, source: Source, memory: Memory
) -> None:
    images = many(source, 40)
    generator = torch.Generator().manual_seed(1)
    candidates = [
        {n: p + 0.1 * torch.randn(p.shape, generator=generator)
         for n, p in strategy.selection.items() if n.startswith("clip.visual.ln_")}
        for _ in range(3)
    ]  # fmt: skip
    assert candidates[0]
    choices = torch.arange(len(images)) % 3
    text = strategy.model.text_features

    def scores() -> Tensor:
        return evaluate._mixed(
            strategy, candidates, choices, images, text, strategy.score_all
        )  # fmt: skip

    expected = scores()
    memory.room = 12
    memory.batches.clear()
    torch.testing.assert_close(scores(), expected)
    assert memory.batches == [10] * 4
    assert strategy.warnings == ["out of memory in evaluation: 10 images at a time from now on"]


# ---- the estimate of the time ------------------------------------------------------------------


def estimated(strategy: CLIPStrategy, source: Source) -> float | None:
    plan: Any = SimpleNamespace(recipe=None)
    probes: Mapping[str, Source] = {}
    strategy.learning = "none"  # type: ignore[misc]
    scenario = build_scenario("s", source, tasks=3)  # 48 test images, 6 classes
    return estimate.estimate_seconds(plan, scenario, strategy, probes)


def test_an_estimate_times_fewer_images_or_prompts_where_memory_runs_out(
    strategy: CLIPStrategy, source: Source, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second(function: Callable[[], Tensor]) -> float:
        function()
        return 1.0

    monkeypatch.setattr(estimate, "_seconds", second)
    monkeypatch.setattr(estimate, "_TIMED_IMAGES", 32)
    monkeypatch.setattr(estimate, "_TIMED_PROMPTS", 32)
    assert estimated(strategy, source) == 48 / 32 + 6 / 6
    memory.room = 9
    assert estimated(strategy, source) == 48 / 8 + 6 / 6
    encode = strategy.model.text_features

    def text_features(classes: list[int]) -> Tensor:
        if len(classes) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return encode(classes)

    monkeypatch.setattr(strategy.model, "text_features", text_features)
    assert estimated(strategy, source) == 48 / 8 + 6 / 1  # 6, 3, 1
    memory.room = 0
    assert estimated(strategy, source) is None


@pytest.mark.parametrize("text", ["out of memory", "the shapes do not match"])
def test_only_what_is_no_lack_of_memory_ends_an_estimate(
    text: str, strategy: CLIPStrategy, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def text_features(classes: list[int]) -> Tensor:
        raise RuntimeError(text)

    monkeypatch.setattr(strategy.model, "text_features", text_features)
    if text == "out of memory":
        assert estimated(strategy, source) is None
    else:
        with pytest.raises(RuntimeError, match=text):
            estimated(strategy, source)


def test_a_run_without_memory_for_its_estimate_says_none_and_goes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(function: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(estimate, "_seconds", fail)
    assert main([*TINY, "--strategy", "zero-shot", "--output", str(tmp_path)]) == 0
    assert "minutes on" not in capsys.readouterr().err
