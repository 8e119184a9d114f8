"""The benchmarks run and say what they should; how fast is not tested."""

import importlib
import json
import os
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import CIFAR100

from benchmarks import (
    endurance,
    merge_step,
    mixed_batch,
    neighbours,
    preprocess,
    published,
    startup,
    step,
    stream,
    text,
    timing,
)
from benchmarks.faults.job import start, wait
from benchmarks.flops import image_tower_flops, tower_matmul
from benchmarks.ours import clipfit_loss, mergetune_loss
from cl_clipfit import Recipe, create_classifier
from cl_clipfit.data.images.decode import THREADS
from cl_clipfit.errors import UserError
from cl_clipfit.methods.continued import Stage
from cl_clipfit.strategies.clipfit import ClipFit
from cl_clipfit.strategies.coop import CoOp
from cl_clipfit.strategies.mergetune import MergeTune, MergeTuneOptions
from cl_clipfit.training.selection import select_clipfit
from tests.support.tiny import TINY

WAYS = {"ours_32", "ours_256", "open_clip_32", "open_clip_256", "jpeg_files"}
TOWERS = {"tower_forward", "tower_training"}


def test_late_tasks_are_compared_with_early_ones(capsys: pytest.CaptureFixture) -> None:
    tasks = ["--tasks", "5", "--warm-up", "2", "--evaluate-every", "2", "--threads", "1"]
    endurance.main([*tasks, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["tasks"], found["tasks_at_each_end"], found["evaluations"]) == (5, 1, 2)
    for key, ends in (("seconds", found["seconds"]), ("memory", found["resident_bytes"])):
        assert min(ends.values()) > 0
        assert found["last_over_first"][key] == pytest.approx(ends["last"] / ends["first"])
    endurance.main(tasks)
    assert "last / first: " in capsys.readouterr().out


def test_preprocessing_and_towers_are_timed(capsys: pytest.CaptureFixture) -> None:
    preprocess.main(["--model", "mini", "--batch-size", "2", "--repeats", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert set(found["images_per_second"]) == WAYS | TOWERS
    assert set(found["share_of_tower"]) == TOWERS
    assert all(set(shares) == WAYS for shares in found["share_of_tower"].values())
    speeds = found["images_per_second"]
    assert all(speed > 0 for speed in speeds.values())
    for tower, shares in found["share_of_tower"].items():
        for way, share in shares.items():
            assert share == pytest.approx(speeds[tower] / speeds[way])
    ratios = {side: speeds[f"ours_{side}"] / speeds[f"open_clip_{side}"] for side in ("32", "256")}
    assert found["open_clip_over_ours"] == pytest.approx(ratios)
    assert (found["batch_size"], found["repeats"], found["device"]) == (2, 1, "cpu")
    assert found["decoding_threads"] == THREADS


@pytest.mark.skipif(not stream.PROCESS.is_dir(), reason="peak memory is read from /proc")
def test_stages_of_a_stream_are_timed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sizes = ["--train", "2", "--test", "1", "--experiences", "10", "20", "--repeats", "1"]
    stream.main(["--data-dir", str(tmp_path), *sizes, "--threads", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    for key in ("seconds", "peak_bytes"):
        assert set(found[key]) == {"load", "cut", "avalanche"}
        assert all(value > 0 for value in found[key].values())
    assert set(found["online_seconds"]) == {"10", "20"}
    few, many = found["online_seconds"]["10"], found["online_seconds"]["20"]
    assert found["online_growth"] == pytest.approx(many / few / 2)
    assert min(few, many) > 0
    assert found["images"] == [200, 100]
    assert found["archive_bytes"] == (tmp_path / "cifar-100-python.tar.gz").stat().st_size


def test_the_archive_written_is_one_that_torchvision_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream.write_archive(tmp_path, 2, 1)
    monkeypatch.setattr(CIFAR100, "_check_integrity", lambda self: True)  # of the official files
    with tarfile.open(tmp_path / "cifar-100-python.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    source = stream.read(tmp_path)
    for train, ours in ((True, source.train), (False, source.test)):
        theirs = CIFAR100(str(tmp_path), train=train)
        assert (theirs.data.transpose(0, 3, 1, 2) == ours.images.numpy()).all()
        assert theirs.targets == ours.labels.tolist()


@pytest.mark.parametrize("wrong", [["--experiences", "15"], ["--repeats", "0"]])
def test_wrong_numbers_are_refused(wrong: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        stream.main(wrong)
    assert wrong[0] in capsys.readouterr().err


# ---- steps ---------------------------------------------------------------------------------------

NAMES = ["apple", "maple tree", "sweet pepper"]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 32, 32, generator=draws), torch.tensor([0, 1, 2, 1])


def put_into_training(strategy: Any) -> None:
    """Put a strategy into the first task of all classes, without a stream."""
    strategy.task_classes = strategy.seen_classes = [0, 1, 2]
    strategy.tasks_seen, strategy.is_training = 1, True
    strategy.select()


def moved(values: dict[str, nn.Parameter], seed: int) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {n: p + 0.02 * torch.randn(p.shape, generator=draws) for n, p in values.items()}


def gradients(loss: Tensor, parameters: Any) -> dict[str, Tensor]:
    names, values = zip(*parameters.items(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, values), strict=True))


def published_clip(model: Any) -> Any:
    clip = published.load("mini")
    clip.load_state_dict(model.clip.state_dict())
    return clip


def test_clipfit_steps_are_those_of_the_strategy(batch: tuple[Tensor, Tensor]) -> None:
    model = create_classifier("mini")
    strategy: Any = ClipFit(model=model, class_names=NAMES, recipe=Recipe(optimizer="sgd"))
    put_into_training(strategy)
    clip = published_clip(model)
    method = published.ClipFit(clip, published.tokenize("mini", NAMES))  # anchors at zero-shot
    with torch.no_grad():
        model.load_values(moved(strategy.selection, 1))
    clip.load_state_dict(model.clip.state_dict())

    expected = strategy.training_loss(*batch)
    wanted = gradients(expected, strategy.selection)
    own = clipfit_loss(model, *batch)
    torch.testing.assert_close(own, expected)
    torch.testing.assert_close(gradients(own, strategy.selection), wanted)

    trained = {f"clip.{n}": p for n, p in clip.named_parameters() if p.requires_grad}
    assert set(trained) == set(wanted) and len(method.trainable) == len(wanted)
    theirs = method.loss(*batch)
    torch.testing.assert_close(theirs, expected)
    torch.testing.assert_close(gradients(theirs, trained), wanted, rtol=1e-3, atol=1e-4)
    before = [p.detach().clone() for p in method.trainable]
    method.step(*batch)
    assert not any(torch.equal(p, b) for p, b in zip(method.trainable, before, strict=True))


def test_mergetune_steps_are_those_of_the_strategy(
    batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = MergeTuneOptions(
        space="text-features", anchor="zero-shot", lambda_zero_shot=8.0, beta=1.0, alpha="grid-5"
    )
    model = create_classifier("mini")
    strategy: Any = MergeTune.over(CoOp)(
        model=model, class_names=NAMES, recipe=Recipe(optimizer="sgd"), options=options
    )
    put_into_training(strategy)
    method = published.MergeTune(published_clip(model), published.tokenize("mini", NAMES))
    context = model.context
    assert context is not None and method.context.shape == (4, 64)
    torch.testing.assert_close(method.context, context)
    start = strategy.zero_shot_point()
    with torch.no_grad():
        host, current = moved(strategy.selection, 1), moved(strategy.selection, 2)
        strategy.second_stage = Stage(start, start, host)
        strategy.prepare_stage(strategy.second_stage)
        model.load_values(host)
        host_text = model.text_features(normalize=False)
        model.load_values(current)
        method.first_stage.copy_(host["context"])
        method.context.copy_(current["context"])

    expected = strategy.training_loss(*batch)
    wanted = gradients(expected, {"context": context})["context"]
    features = model.image_features(batch[0])
    for images in (batch[0], features):  # encoded in the step, or before it
        own = mergetune_loss(model, images, batch[1], host_text)
        torch.testing.assert_close(own, expected)
        torch.testing.assert_close(gradients(own, {"c": context})["c"], wanted)

    runs: list[Any] = []
    encode = method.encode_text

    def note(context: Tensor) -> Tensor:
        runs.append(context.requires_grad)
        return encode(context)

    monkeypatch.setattr(method, "encode_text", note)
    method.clip.visual.register_forward_hook(lambda *_: runs.append("image"))
    theirs = method.loss(*batch)
    assert runs == [True, "image", False, True, *["image"] * 5]
    torch.testing.assert_close(theirs, expected)
    found = gradients(theirs, {"c": method.context})["c"]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    method.step(*batch)
    assert not torch.equal(method.context, current["context"])


def test_published_fp16_keeps_layer_norms_in_fp32(batch: tuple[Tensor, Tensor]) -> None:
    losses = []
    for dtype in (torch.float32, torch.float16):
        torch.manual_seed(0)
        clip = published.load("mini", dtype=dtype)
        method = published.ClipFit(clip, published.tokenize("mini", NAMES))
        losses.append(method.loss(*batch))
    assert clip.visual.conv1.weight.dtype == clip.text_projection.dtype == torch.float16
    assert clip.visual.ln_pre.weight.dtype == torch.float32
    assert losses[1].dtype == torch.float16
    torch.testing.assert_close(losses[1].float(), losses[0], rtol=0.02, atol=0.02)
    method.step(*batch)
    assert all(p.isfinite().all() for p in method.trainable)


def counted(encode: Any, images: Tensor, count: FlopCounterMode) -> int:
    """Return what PyTorch counts, once attention is made of plain products."""
    with sdpa_kernel(SDPBackend.MATH), count:
        features = encode(images)
        features.backward(torch.ones_like(features))
    return count.get_total_flops()


def test_operations_of_an_image_tower(batch: tuple[Tensor, Tensor]) -> None:
    clip = published.load("mini")
    published.ClipFit(clip, published.tokenize("mini", NAMES))
    found = counted(clip.encode_image, batch[0], FlopCounterMode(display=False))
    assert image_tower_flops(clip.visual, 4, class_token_only=False) == found
    assert tower_matmul(clip.visual, 4) == (4 * 17, 128, 512)
    # by hand, of 17 tokens, width 128, forward and backward: 16 fewer queries, outputs (2 w w each)
    # and feed-forward networks (16 w w), and their shares of attention (4 w and twice that)
    saved = 4 * 16 * (2 * (2 * 2 + 16) * 128**2 + 3 * 4 * 17 * 128)
    assert image_tower_flops(clip.visual, 4, class_token_only=True) == found - saved
    model = create_classifier("mini")
    model.train_only(select_clipfit(model.clip).image)
    own = counted(model.image_features, batch[0], FlopCounterMode(display=False))
    assert own == found - saved


def test_steps_take_turns(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def peak(module: str, *options: str) -> int:
        asked.append((module, options))
        return {"published": 600, "ours_fp32": 200}[options[1]]

    monkeypatch.setattr(timing, "peak_of_child", peak)
    parts = ["published", "ours_fp32", "image_tower_fp32", "stock_image_tower"]
    parts += ["published_mergetune", "ours_mergetune_cached_bf16", "matmul_square_fp32", "memory"]
    skipped = ["published_mergetune", "ours_mergetune_cached_bf16"]
    few = ["--model", "mini", "--classes", "3", "--batch-size", "2", "--repeats", "1"]
    few += ["--matmul", "64", "--device", "cpu"]
    step.main([*few, "--json", "--only", *parts, "--skip", *skipped])
    found = json.loads(capsys.readouterr().out)
    seconds = found["seconds"]
    assert set(seconds) == {*parts} - {*skipped, "memory"}
    assert found["ratios"] == {
        pair: pytest.approx(seconds[pair.split("/")[0]] / seconds[pair.split("/")[1]])
        for pair in ("published/ours_fp32", "published/stock_image_tower",
                     "ours_fp32/image_tower_fp32", "stock_image_tower/image_tower_fp32")
    }  # fmt: skip
    speed, tower = found["speed"], found["speed"]["image_tower_fp32"]
    assert speed["matmul_square_fp32"] == pytest.approx(2 * 64**3 / seconds["matmul_square_fp32"])
    each = tower["flops"] / seconds["image_tower_fp32"]
    assert tower["share_of_square_matmul"] == pytest.approx(each / speed["matmul_square_fp32"])
    assert tower["flops"] < speed["stock_image_tower"]["flops"]
    assert found["memory_ratios"] == {"published/ours_fp32": 3.0}
    assert [module for module, _ in asked] == ["benchmarks.step"] * 2
    assert found["device"] == "cpu" and found["huge_pages"] is (
        os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"
    )
    for part in skipped:
        monkeypatch.setattr(timing, "peak_of_child", None)
        step.main([*few, "--only", part])
        assert part in capsys.readouterr().out
    # what a child is asked, in this process
    step.main(list(asked[0][1]))
    weights = sum(p.numel() for p in published.load("mini", "meta").parameters())
    assert int(capsys.readouterr().out) > 4 * weights


def test_step_and_text_need_no_avalanche(tmp_path: Path) -> None:
    def work() -> int:
        for name in [*sys.modules]:
            if name.partition(".")[0] in ("avalanche", "benchmarks", "cl_clipfit"):
                del sys.modules[name]
        sys.modules["avalanche"] = None  # type: ignore[assignment]
        importlib.import_module("benchmarks.step")
        importlib.import_module("benchmarks.text")
        return 0

    assert wait(start(work, tmp_path / "log")) == 0, (tmp_path / "log").read_text()


def test_text_takes_turns(capsys: pytest.CaptureFixture) -> None:
    sizes = ["--model", "mini", "--classes", "2", "5", "--ensemble", "2", "--repeats", "1"]
    text.main([*sizes, "--device", "cpu", "--json"])
    found = json.loads(capsys.readouterr().out)["classes"]
    prompts = {name: size["prompts"] for name, size in found.items()}
    assert prompts == {"2": 2, "5": 5, "2 x 7 templates": 14}
    for size in found.values():
        tokens, seconds = size["tokens"], size["seconds"]
        assert tokens["stock"] == 16 * size["prompts"]
        assert 0 < tokens["ours_fp32"] == tokens["ours_bf16"] <= tokens["stock"]
        ratio = pytest.approx(seconds["stock"] / seconds["ours_bf16"])
        assert size["ratios"]["stock/ours_bf16"] == ratio


def test_other_benchmarks_run(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["--model", "mini", "--batch-size", "2", "--repeats", "1", "--json"]
    mixed_batch.main([*few, "--tasks", "2"])
    found = json.loads(capsys.readouterr().out)
    assert set(found["seconds"]) == {"mixed", "loop", "plain"}
    assert found["max_abs_difference"] < 1e-4
    monkeypatch.setattr(timing, "peak_of_child", lambda module, of, kind, *_: len(kind))
    merge_step.main([*few, "--classes", "3"])
    found = json.loads(capsys.readouterr().out)
    seconds = found["seconds"]
    assert found["time_ratio"] == pytest.approx(seconds["second_stage"] / seconds["host"])
    assert found["memory_ratio"] == len("second_stage") / len("host")


def test_turns_alternate_and_those_that_warm_up_do_not_count() -> None:
    calls: list[str] = []
    ways = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = timing.take_turns(ways, 2)
    assert calls == list("ababab")
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}
    assert timing.ratios({"a": 6.0, "b": 2.0}, [("a", "b"), ("a", "c")]) == {"a/b": 3.0}
    assert timing.class_names(201)[::100] == ["apple", "apple 2", "apple 3"]


def test_a_child_that_fails_is_one_line() -> None:
    with pytest.raises(UserError, match=r"benchmarks\.none --x: .*No module named"):
        timing.peak_of_child("benchmarks.none", "--x")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--model", "RN50"], "RN50 is no CLIP with a ViT"),
        (["--model", "ViT-B-17"], "unknown model architecture"),
        (["--model", "mini:random"], "--model takes an architecture alone"),
        (["--device", "abacus"], "--device abacus"),
        (["--classes", "0"], "--classes must be 1 or more"),
        (["--threads", "-1"], "--threads must be 0 or more"),
        (["--published-dtype", "fp16", "--device", "cpu"], "needs a GPU"),
    ],
)
def test_wrong_options_of_step_are_one_line(
    wrong: list[str], told: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        step.main(["--device", "cpu", "--skip", "memory", *wrong])
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_the_first_step_ends_the_run_that_is_timed(tmp_path: Path) -> None:
    options = ["--output", str(tmp_path), *TINY, "--strategy", "clipfit"]
    assert startup.seconds([sys.executable, "-c", startup.FIRST_STEP, *options], 77) > 0
    assert not list(tmp_path.glob("*/result.json"))
    with pytest.raises(UserError, match="exit code 2: error: unknown strategy"):
        startup.seconds([sys.executable, "run.py", "--strategy", "clipfitt"], 77)


def test_times_of_runs_that_share_a_machine_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(runs: int, epochs: int, variables: Mapping[str, str]) -> float:
        return {1: 10.0, 3: 36.0}[runs] * (2 if runs > 1 and variables else 1)

    monkeypatch.setattr(neighbours, "seconds", seconds)
    ratios = neighbours.measure(runs=3, epochs=1, repeats=1)["ratios"]
    assert ratios == {
        "ours: together/alone": 1.2, "spinning: together/alone": 2.4, "alone: ours/spinning": 1.0,
    }  # fmt: skip
    monkeypatch.undo()
    monkeypatch.setattr(neighbours, "JOB", ("run.py", "--strategy", "clipfitt"))
    with pytest.raises(UserError, match="exit code 2: error: unknown strategy"):
        neighbours.seconds(1, 1, {})
