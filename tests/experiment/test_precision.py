"""`--precision`: what is chosen where, and that a run keeps what it was trained with."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import yaml
from rich.console import Console
from torch import Tensor

from cl_clipfit.cli.app import main
from cl_clipfit.clip import CLIPClassifier, ModelIdentity, create_classifier, precision
from cl_clipfit.config.command import RunConfig
from cl_clipfit.config.parsing import parse_command
from cl_clipfit.errors import UserError
from cl_clipfit.evaluation.feature_cache import FeatureCache
from cl_clipfit.evaluation.frozen_features import FrozenImages
from cl_clipfit.experiment.prepare import Prepared, prepare
from cl_clipfit.experiment.reopen import open_run
from cl_clipfit.experiment.stream_plan import StreamPlan, plan_stream
from cl_clipfit.registry import Registry
from cl_clipfit.report.display import ConsoleDisplay
from tests.support.commands import parse
from tests.support.tiny import PLUGIN, TRAINED, build_source, build_tiny

CPU, GPU, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
QUIET = ConsoleDisplay(Console(quiet=True), quiet=True)
BF16 = [*TRAINED, "--precision", "bf16", "--device", "cpu"]
SLOW = "warning: precision: bf16 is emulated"
X86 = "processor\t: 0\nmodel name\t: X\nflags\t\t: fpu sse2 {}\nvmx flags\t: bf16\nbugs\t\t: none\n"
ARM = "processor\t: 0\nBogoMIPS\t: 2000.00\nFeatures\t: fp asimd {}\nCPU part\t: 0xd4f\n"


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the flags of the processor, none at first, for tests to add to."""
    found: set[str] = set()
    monkeypatch.setattr(precision, "processor_flags", lambda: frozenset(found))
    return found


# ---- what is chosen ------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16", "bf16"])
def test_auto_is_bf16_where_the_processor_has_it_and_the_tower_is_wide(
    flag: str, flags: set[str]
) -> None:
    flags |= {"avx512f", "avx512_vnni", "amx_int8"}  # none of them multiplies bfloat16
    assert precision.resolve_precision("auto", CPU, 768) == "fp32"
    flags.add(flag)
    chosen = [precision.resolve_precision("auto", CPU, w) for w in (128, 383, 384, 768, None)]
    assert chosen == ["fp32", "fp32", "bf16", "bf16", "bf16"]
    assert precision.resolve_precision("auto", MPS, 768) == "fp32"
    assert precision.resolve_precision("fp32", CPU, 768) == "fp32"


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [((7, 5), "fp32"), ((8, 0), "bf16"), ((8, 9), "bf16"), ((9, 0), "bf16"), ((12, 0), "bf16")],
)
def test_auto_follows_the_generation_of_the_gpu(
    capability: tuple[int, int], chosen: str, flags: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags.add("amx_bf16")  # of the processor, which is not asked
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision.resolve_precision("auto", GPU, 768) == chosen
    assert precision.resolve_precision("auto", GPU, 128) == "fp32"
    assert precision.resolve_precision("bf16", GPU, 128) == "bf16"


def test_bf16_is_obeyed_without_hardware_and_refused_where_it_is_unknown(flags: set[str]) -> None:
    assert not precision.has_bf16(CPU)
    assert precision.resolve_precision("bf16", CPU, 128) == "bf16"
    with pytest.raises(
        UserError, match=r"--precision bf16 is not supported on mps: choose --device"
    ):
        precision.resolve_precision("bf16", MPS, 768)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86.format("avx512_bf16 amx_tile"), {"fpu", "sse2", "avx512_bf16", "amx_tile"}),
        (X86.format(""), {"fpu", "sse2"}),
        (ARM.format("i8mm bf16"), {"fp", "asimd", "i8mm", "bf16"}),
        ("cpu\t\t: POWER9\n", set()),
    ],
)
def test_flags_are_read_as_linux_writes_them(
    text: str, expected: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "_CPUINFO", file)
    assert precision.processor_flags() == set()  # a system without such a file
    file.write_text(text)
    assert precision.processor_flags() == expected


def test_the_width_is_that_of_the_image_transformer(tiny: Any) -> None:
    assert precision.tower_width(tiny().clip) == 32
    assert precision.tower_width(create_classifier("mini").clip) == 128
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    convolutions = open_clip.CLIP(16, vision_cfg=vision, text_cfg=text)
    assert precision.tower_width(convolutions) is None


# ---- from the command to the run -----------------------------------------------------------------


def prepared(*arguments: str) -> Prepared:
    """Do what a command does before it trains."""
    config = RunConfig.model_validate(parse(*arguments))
    return prepare(config, ConsoleDisplay(Console(stderr=True, width=120)))


def plan(*arguments: str) -> StreamPlan:
    """Plan the stream of a command."""
    config = RunConfig.model_validate(parse(*arguments))
    return plan_stream(parse_command(config), Registry(config.plugin))


def digest(work: Prepared) -> str:
    return work.folder(work.plans[0]).digest


def test_auto_keeps_the_mini_clip_at_fp32_on_every_machine(
    flags: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags |= {"avx512_bf16", "amx_bf16"}
    work = prepared(*TRAINED, "--device", "cpu")
    assert (work.model.precision, work.stream.compute.precision) == ("fp32", "fp32")
    assert "precision" not in capsys.readouterr().err


def test_auto_is_the_run_of_what_it_resolves_to(
    flags: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "WIDE", 128)  # that of the mini CLIP
    flags.add("amx_bf16")
    auto = prepared(*TRAINED, "--device", "cpu")
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("precision"))
    assert line == (
        "precision: bf16 (the CPU supports bfloat16 in hardware; --precision fp32 for"
        " exact numbers)"
    )
    asked = prepared(*BF16)
    assert capsys.readouterr().err.splitlines() == ["precision: bf16"]
    assert (auto.model.precision, asked.model.precision) == ("bf16", "bf16")
    assert digest(auto) == digest(asked)
    exact = prepared(*TRAINED, "--device", "cpu", "--precision", "fp32")
    assert digest(exact) != digest(asked)
    flags.clear()
    assert digest(prepared(*TRAINED, "--device", "cpu")) == digest(exact)
    assert capsys.readouterr().err == ""


def test_features_of_one_precision_are_not_taken_for_those_of_another(tmp_path: Path) -> None:
    model, images, files = build_tiny(), build_source().test.images, []
    model.identity = ModelIdentity("tiny", "random", "0")
    for name in ("fp32", "bf16", "fp32"):
        model.precision = name  # type: ignore[assignment]
        FrozenImages(model, CPU, QUIET, FeatureCache(tmp_path)).features(images)
        files.append(len(list(tmp_path.iterdir())))
    assert files == [1, 2, 2]


def test_encoded_features_have_no_precision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = ["--scenario", "features", "--data-dir", str(tmp_path)]
    assert main([*features, "--precision", "bf16", "--output", str(tmp_path)]) == 2
    assert "--precision bf16: features come encoded" in capsys.readouterr().err
    assert plan(*features).compute.precision == "fp32"
    assert plan(*TRAINED).compute.precision == "auto"


# ---- a run and what follows on it ----------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run in bf16, of two tasks."""
    output = tmp_path_factory.mktemp("runs")
    torch.set_num_threads(1)
    assert main([*BF16, "--limit", "4", "--epochs", "2", "--output", str(output)]) == 0
    (file,) = output.glob("*/result.json")
    return file.parent


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_a_run_records_its_precision_and_is_repeated_in_it(
    run: Path, flags: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert read(run)["precision"] == "bf16"
    assert yaml.safe_load((run / "config.yaml").read_text())["precision"] == "bf16"
    again = ["--config", str(run / "config.yaml"), "--output", str(run.parent), "--quiet", *PLUGIN]
    stamp = (run / "result.json").stat().st_mtime_ns
    assert main(again) == 0
    error = capsys.readouterr().err.splitlines()
    assert error == [f"{SLOW}, slowly: this CPU has no hardware for it"]
    assert (run / "result.json").stat().st_mtime_ns == stamp  # found, and not run anew
    exact = run.parent.parent / "exact"
    assert main([*again[:2], *PLUGIN, "--precision", "auto", "--output", str(exact)]) == 0
    (other,) = exact.glob("*/result.json")
    assert read(other.parent)["precision"] == "fp32"
    assert other.parent.name != run.name


def test_classes_are_encoded_in_the_precision_of_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, add = [], CLIPClassifier.add_classes

    def watched(self: CLIPClassifier, *args: Any) -> None:
        seen.append(self.precision)
        add(self, *args)

    monkeypatch.setattr(CLIPClassifier, "add_classes", watched)
    opened = open_run(run, QUIET)
    assert opened.strategy.model.precision == "bf16"
    assert seen
    assert set(seen) == {"bf16"}


def test_a_finished_run_is_evaluated_in_its_precision_on_any_machine(
    run: Path, tmp_path: Path, flags: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(tmp_path / "model.safetensors")
    commands = (
        ["bank", "eval", str(run), "--mode", "latest"],
        ["bank", "export", str(run), checkpoint],
        ["bank", "show", str(run), "1"],
        ["landscape", str(run), "--images", "4", "--no-plane"],
        ["merge", str(run), "--method", "mean"],
    )
    for command in commands:
        for has, line in ((set(), SLOW), ({"amx_bf16"}, "precision: bf16")):
            flags.clear()
            flags |= has
            again = ["--force"] if has and command[1] == "export" else []
            assert main([*command, *again, *PLUGIN]) == 0, command
            assert capsys.readouterr().err.startswith(line), command
    modes = json.loads((run / "bank-eval.json").read_text())["modes"]
    assert modes[0]["metrics"] == read(run)["metrics"]
    (merged,) = run.parent.glob("*+mean-*")
    assert read(merged)["precision"] == "bf16"
    assert open_run(merged, QUIET).prepared.stream.compute.precision == "bf16"
    assert main(["bank", "eval", str(run), "--mode", "latest", "--device", "cpu", *PLUGIN]) == 0


def test_an_export_is_checked_in_fp32(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """open_clip's own features, which the file is tried with, are exact."""
    used, encode = [], CLIPClassifier.encode_prompts

    def watched(self: CLIPClassifier, *args: Any, **more: Any) -> Tensor:
        used.append(self.precision)
        return encode(self, *args, **more)

    monkeypatch.setattr(CLIPClassifier, "encode_prompts", watched)
    assert main(["bank", "export", str(run), str(tmp_path / "model.pt"), *PLUGIN]) == 0
    assert used[-1] == "fp32"
