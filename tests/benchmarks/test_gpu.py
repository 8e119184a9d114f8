"""`benchmarks.gpu`: in little on the CPU, in a process without the packages it must not need."""

import io
import json
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import all_reduce, budget, gpu, gpu_checks, gpu_steps
from benchmarks.budget import Found, Part, measure_parts, run_parts
from cl_clipfit.errors import UserError

NOT_NEEDED = (
    "avalanche", "pydantic", "cyclopts", "rich", "sklearn", "scipy", "matplotlib", "pandas",
    "torchmetrics",
)  # fmt: skip


def block(folder: Path, *names: str) -> None:
    """Make every process that has this folder on its path fail to import some packages."""
    code = f"import sys\nfor name in {names!r}:\n    sys.modules[name] = None\n"
    (folder / "sitecustomize.py").write_text(code)


def test_every_part_runs_without_avalanche(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    block(tmp_path, *NOT_NEEDED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path.cwd())]))
    gpu.main(["--tiny", "--device", "cpu", "--threads", "1", "--json", "--seconds", "120"])
    found = json.loads(capsys.readouterr().out)
    parts = found["parts"]
    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(parts, "done")
    assert {name.split(":")[0] for name in parts} == {
        "matmul", "clipfit", "mergetune", "text", "evaluate", "memory_retry", "nan_watch",
        "determinism", "all_reduce",
    }  # fmt: skip
    assert found["summary"]["not_done"] == {} and found["machine"]["device"] == "cpu"

    step = parts["clipfit:mini:2"]["found"]
    for way in ("published_fp16", "published_fp32", "ours_bf16", "image_tower_bf16"):
        assert 0 < step[way]["fastest"] <= step[way]["seconds"] and step[way]["calls"] >= 3
    assert step["ours_bf16_compiled"] == {"skipped": gpu_steps.ON_CPU}
    tower, peak = step["image_tower_bf16"], parts["matmul"]["found"]["bf16"]["flops_per_second"]
    assert tower["share_of_bf16_peak"] == pytest.approx(tower["flops_per_second"] / peak)
    speedup = step["published_fp16"]["seconds"] / step["ours_bf16"]["seconds"]
    times = found["summary"]["times_as_fast"]["clipfit:mini:2"]
    assert times["published_fp16/ours_bf16"] == pytest.approx(speedup)
    aims = found["summary"]["aims"]
    measured = aims["CLIPFit step, published_fp16/ours_bf16"]["measured"]
    assert set(measured) == {"clipfit:mini:2"}
    assert set(aims["share of the bf16 peak"]["measured"]) == {"clipfit:mini:2 image_tower_bf16"}

    retry = parts["memory_retry:mini"]["found"]
    assert retry["training"]["images_at_a_time"] == [12, 6, 3] and retry["training"]["finite"]
    assert retry["evaluation"]["images_at_a_time"] == 3
    assert retry["training"]["simulated"] and retry["evaluation"]["ran_out_of_memory"]
    watch = parts["nan_watch:mini"]["found"]["watch"]
    assert watch == {"nan_in_step": 5, "noticed": 5, "steps_taken": 5}
    assert parts["determinism:mini"]["found"]["equal_with_deterministic"] is True
    assert parts["evaluate:mini"]["found"]["ours_bf16"]["images_per_second"] > 0
    assert {"published_50", "ours_bf16_50"} <= set(parts["text:mini"]["found"])
    assert "two GPUs" in parts["all_reduce"]["found"]["skipped"]


def test_ways_are_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_functions: list[Any] = []
    monkeypatch.setattr(
        "cl_clipfit.clip.encoders.compiled.torch.compile",
        lambda function: compiled_functions.append(function) or function,
    )
    bench = gpu_steps.Bench("cpu", classes=3, matmul=16, seconds=0)
    clip = bench.stock("mini", "fp16")
    assert clip.visual.conv1.weight.dtype == clip.text_projection.dtype == torch.float16
    assert clip.visual.ln_pre.weight.dtype == torch.float32
    assert bench.weights("mini").visual.conv1.weight.dtype == torch.float32
    images, labels = bench.batch("mini", 2)
    losses = {}
    for compiled in (False, True):
        model = bench.trained("mini", "bf16", compiled)
        losses[compiled] = gpu_steps.ours.clipfit_loss(model, images, labels)
        assert len(compiled_functions) == compiled
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) > 0
    torch.testing.assert_close(losses[True], losses[False], rtol=0.05, atol=0.05)

    def full() -> Any:
        raise torch.OutOfMemoryError

    assert bench.time(full) == {"out_of_memory": True}


def test_a_watch_that_sees_nothing_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks._Watch, "leaves_out", lambda *_: False)
    monkeypatch.setattr(gpu_checks.timing, "take_turns", lambda *_: {})
    bench = gpu_steps.Bench("cpu", classes=3)
    with pytest.raises(UserError, match="the loss of step 5 is NaN, and the watch says none"):
        gpu_checks.nan_watch(bench, lambda key, value: None, "mini")


def events(parts: Sequence[Part], work: Any, seconds: float, **options: Any) -> list[list[str]]:
    out = io.StringIO()
    run_parts(parts, work, seconds, out, **options)
    return [[told["part"], told["event"]] for told in map(json.loads, out.getvalue().splitlines())]


def test_parts_end_at_their_cap_and_all_of_them_at_the_budget() -> None:
    def work(name: str, report: budget.Report) -> None:
        report("first", 1)
        if name == "slow":
            time.sleep(60)
        if name == "wrong":
            raise ValueError("no such thing")

    three = [Part("slow", 0.05), Part("wrong", 9), Part("last", 9)]
    assert events(three, work, 60) == [
        ["slow", "begun"], ["slow", "found"], ["slow", "cut off"],
        ["wrong", "begun"], ["wrong", "found"], ["wrong", "failed"],
        ["last", "begun"], ["last", "found"], ["last", "done"],
    ]  # fmt: skip
    assert events(three, work, budget.LEAST - 1) == [[p.name, "skipped"] for p in three]
    assert events(three[1:], work, 60, broken=lambda: True)[-1] == ["wrong", "failed"]


CHILD = """
    import json, os, sys, time
    def say(part, event, **more):
        print(json.dumps({"part": part, "event": event, **more}), flush=True)
    for name in sys.argv[1:]:
        say(name, "begun", cap=0.1)
        say(name, "found", key="n", value=len(name))
        if name == "crash":
            print("Segmentation", file=sys.stderr)
            os._exit(7)
        if name == "hang":
            time.sleep(60)
        say(name, "done", why="", seconds=0.5)
"""


def test_a_part_that_crashes_or_hangs_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "GRACE", 0.1)
    (tmp_path / "child.py").write_text(textwrap.dedent(CHILD))
    started: list[list[str]] = []

    def command(left: Sequence[Part], seconds: float) -> list[str]:
        started.append([part.name for part in left])
        return [sys.executable, "-S", str(tmp_path / "child.py"), *started[-1]]

    names = ["good", "crash", "hang", "fine"]
    parts = measure_parts(command, [Part(name, 1) for name in names], 60, {})
    assert started == [names, ["hang", "fine"], ["fine"]]
    assert [parts[name]["status"] for name in names] == ["done", "failed", "failed", "done"]
    assert parts["crash"]["why"] == "the process ended with code 7: Segmentation"
    assert "hung" in parts["hang"]["why"] and parts["hang"]["found"] == {"n": 4}
    assert parts["good"]["seconds"] == 0.5

    none = measure_parts(lambda *_: [sys.executable, "-S", "-c", "1"], [Part("a", 1)], 60, {})
    assert none["a"]["status"] == "skipped"


def test_a_process_that_ends_between_parts_fails_none() -> None:
    found = Found()
    found.add('{"part": "a", "event": "begun", "cap": 1}')
    found.add('{"part": "a", "event": "done", "seconds": 2, "why": ""}')
    found.fail("it is gone")
    assert found.parts == {"a": {"status": "done", "found": {}, "seconds": 2}}


def test_sums_over_processes_are_right_and_timed(tmp_path: Path) -> None:
    found = all_reduce.measure(0, 1, str(tmp_path / "store"), {"few": 10})
    assert found["processes"] == 1 and found["few"]["right"]
    assert (found["few"]["bytes"], found["few"]["bytes_per_second"]) == (40, 0)  # nothing is sent
