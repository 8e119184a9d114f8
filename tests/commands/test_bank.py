"""`run.py bank`: what it prints against plain arithmetic, what it exports against open_clip."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from cl_clipfit.bank.store import DeltaBank
from cl_clipfit.cli.app import main
from cl_clipfit.clip import checkpoint_file, create_classifier
from cl_clipfit.clip.loading.names import MINI_FOLDER
from cl_clipfit.commands import bank_export
from cl_clipfit.commands.bank import _shortened
from tests.support.tiny import PLUGIN, TRAINED

BASE = {"architecture": "no-such-model", "pretrained": "tag", "weights_sha256": "0123456789abcdef"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two tasks."""
    output = tmp_path_factory.mktemp("runs")
    assert main([*TRAINED, "--quiet", "--output", str(output)]) == 0
    (file,) = output.glob("*/config.yaml")
    return file.parent


@pytest.fixture(scope="module")
def start() -> dict[str, Tensor]:
    """Return the pretrained values of the mini CLIP, by name in a classifier."""
    return {name: p.detach() for name, p in create_classifier("mini").named_parameters()}


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """Return the folder of a bank of a model nobody has, with numbers to reckon with."""
    folder = tmp_path / "shared"
    made = DeltaBank.create(folder, BASE, "method[bold]:a=1")
    zeros = {"b.weight": torch.zeros(1), "a.weight": torch.zeros(2)}
    moved = {"b.weight": torch.tensor([-5.0]), "a.weight": torch.tensor([3.0, 4.0])}
    made.append(zeros, ["cat", "dog"], ["zero-shot"], statistics={"x": torch.zeros(500_000)})
    made.append(moved, [f"class {n}" for n in range(100)], ["task-001"])
    return folder


def named(arguments: tuple[object, ...]) -> list[str]:
    """Return the plug-ins that a run was made with; `list` opens none."""
    return [] if arguments[0] == "list" else PLUGIN


def ask(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run `bank ...`; return what it printed, in lines of at most 120 characters but for paths."""
    capsys.readouterr()
    assert main(["bank", *map(str, arguments), *named(arguments)]) == 0
    printed = capsys.readouterr().out
    tables = [line for line in printed.splitlines() if line.startswith(" ")]
    assert all(len(line) <= 120 for line in tables)
    return printed


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run `bank ...`, which must fail with one line; return the line."""
    capsys.readouterr()
    assert main(["bank", *map(str, arguments), *named(arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


def row(printed: str, first: str) -> list[str]:
    """Return the cells of the one row that starts with `first`."""
    (line,) = (line for line in printed.splitlines() if line.split()[:1] == [first])
    return re.split(r"\s{2,}", line.strip())


def values(run: Path, task: int) -> dict[str, Tensor]:
    return load_file(run / "bank" / f"task-{task:03d}.safetensors")


def rms(changes: list[Tensor]) -> float:
    return float(torch.cat([change.flatten() for change in changes]).square().mean().sqrt())


# ---- list and show -------------------------------------------------------------------------------


def test_a_shared_bank_is_listed_without_its_model(
    bank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = ask(capsys, "list", bank)
    assert "base model: no-such-model (tag), weights 0123456789ab\n" in printed
    assert "strategy: method[bold]:a=1\n" in printed
    assert "2 tensors, 3 values" in printed
    size = f"{(bank / 'task-001.safetensors').stat().st_size / 1e3:.1f} kB"
    assert row(printed, "1") == ["1", "cat, dog", "zero-shot", "task-001.safetensors", size]
    assert row(printed, "task-001-statistics.safetensors")[1] == "2.0 MB"
    assert row(printed, "2")[1:3] == ["class 0, class 1, class 2 and 97 more", "task-001"]
    assert "verified: all 3 files" in printed


def test_the_bank_of_a_run_is_found(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "list", run) == ask(capsys, "list", run / "bank")
    assert "mini (bundled)" in ask(capsys, "list", run)


def test_a_damaged_file_is_named_and_nothing_is_called_verified(
    bank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = bank / "task-002.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert "task-002.safetensors is damaged" in refused(capsys, "list", bank)
    assert "no bank here" in refused(capsys, "list", bank.parent)


def test_tensors_are_shown_in_the_order_of_the_model(
    bank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = ask(capsys, "show", bank, "2")
    assert row(printed, "b.weight") == ["b.weight", "1", "5"]
    assert row(printed, "a.weight") == ["a.weight", "2", "5"]
    assert printed.index("b.weight") < printed.index("a.weight")
    assert "class 0" in printed
    assert "pretrained" not in printed
    assert "no task 3" in refused(capsys, "show", bank, "3")


def test_long_names_stay_within_120_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = DeltaBank.create(tmp_path, BASE, "x")
    name = "clip.visual." + "deep." * 30 + "weight"
    made.append({name: torch.ones(2, 3)}, ["c" * 200], ["p" * 200])
    made.append({name: torch.zeros(2, 3)}, ["d"])
    ask(capsys, "list", tmp_path)
    assert "2 x 3" in ask(capsys, "show", tmp_path, "1")
    assert "100.0%" in ask(capsys, "diff", tmp_path, "--task", "1", "--to", "2")


def test_a_hundred_thousand_names_are_shortened_at_once() -> None:
    names = [f"class {n}" for n in range(100_000)]
    started = time.process_time()
    assert _shortened(names) == "class 0, class 1, class 2 and 99997 more"
    assert _shortened([""] * 100_000).endswith(" more")
    assert len(_shortened(["x" * 10_000_000] * 3)) < 100
    assert time.process_time() - started < 1


def test_a_name_with_a_line_break_forges_no_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = "x\nverified: all 9 files are fine"
    made = DeltaBank.create(tmp_path, BASE | {"architecture": forged}, forged)
    made.append({"a\nverified: all 9": torch.ones(2)}, [forged], [f"y\t{forged}"])
    for command in (["list"], ["show"], ["diff", "--task", "1", "--to", "1"]):
        task = ["1"] if command == ["show"] else []
        printed = ask(capsys, command[0], tmp_path, *task, *command[1:])
        assert "\t" not in printed
        lines = [line.strip() for line in printed.splitlines()]
        assert not any(line.startswith("verified: all 9") for line in lines)
    assert f"strategy: {forged.replace(chr(10), ' ')}\n" in ask(capsys, "list", tmp_path)


def test_a_run_shows_the_change_from_the_pretrained_values(
    run: Path, start: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    printed = ask(capsys, "show", run, "2")
    for name, value in values(run, 2).items():
        wanted = ["128", f"{value.norm():.4g}", f"{rms([value - start[name]]):.4g}"]
        for found, expected in zip(row(printed, name)[1:], wanted, strict=True):
            assert float(found) == pytest.approx(float(expected), rel=2e-3)


# ---- diff ----------------------------------------------------------------------------------------


def test_layers_are_ranked_by_how_far_they_moved(
    bank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = ask(capsys, "diff", bank, "--task", "1", "--to", "2")
    assert row(printed, "b") == ["b", "5", "50.0%"]
    assert row(printed, "a") == ["a", "3.54", "50.0%"]  # the square root of (9 + 16) / 2
    assert re.findall(r"^ +([ab]) ", printed, re.M) == ["b", "a"]
    still = ask(capsys, "diff", bank, "--task", "2", "--to", "2")
    assert row(still, "a") == ["a", "0", "-"]


def test_ten_layers_are_printed_and_the_others_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = DeltaBank.create(tmp_path, BASE, "x")
    for level in (0.0, 1.0):
        made.append({f"layer{n}.weight": torch.full((1,), level) for n in range(16)}, ["c"])
    printed = ask(capsys, "diff", tmp_path, "--task", "1", "--to", "2")
    assert re.findall(r"layer\d+", printed) == [f"layer{n}" for n in range(10)]
    assert row(printed, "the") == ["the 6 others", "37.5%"]


@pytest.mark.usefixtures("drawn_figures")
def test_each_task_is_compared_with_the_one_before(
    run: Path, start: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [(start, values(run, 1)), (values(run, 1), values(run, 2))]
    printed = ask(capsys, "diff", run)
    tables = re.split(r"^task \d, its own change.*$", printed, flags=re.M)[1:]
    assert len(tables) == 2
    for (before, after), table in zip(steps, tables, strict=True):
        every = {name: after[name] - before[name] for name in after}
        layer = [change for name, change in every.items() if ".ln_post." in name]
        _, moved, share = row(table, "clip.visual.ln_post")
        assert float(moved) == pytest.approx(rms(layer), rel=6e-3)
        squares = [sum(float(c.square().sum()) for c in some) for some in (layer, every.values())]
        assert float(share.rstrip("%")) == pytest.approx(100 * squares[0] / squares[1], abs=0.06)
        shares = re.findall(r"([\d.]+)%", table)
        assert sum(map(float, shares)) == pytest.approx(100, abs=0.4)
    for kind in ("png", "svg"):
        assert (run / f"bank-diff.{kind}").stat().st_size > 5000
    for ends, table in ((("0", "1"), tables[0]), (("2", "1"), tables[1])):
        pair = ask(capsys, "diff", run, "--task", ends[0], "--to", ends[1])
        assert row(pair, "clip.visual.ln_post") == row(table, "clip.visual.ln_post")


def test_diff_says_what_it_needs(run: Path, bank: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "need each other" in refused(capsys, "diff", run, "--task", "1")
    assert "no task 3" in refused(capsys, "diff", run, "--task", "1", "--to", "3")
    assert "not a run folder" in refused(capsys, "diff", bank)


# ---- export --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file_name", "arguments", "first", "second"),
    [
        ("a.safetensors", [], 0.0, 1.0),
        ("b.pt", ["--task", "1"], 1.0, 0.0),
        ("c.safetensors", ["--mode", "mean"], 0.5, 0.5),
        ("d d.PT", ["--mode", "wise", "--alpha", "0.25"], 0.0, 0.25),
        ("e.safetensors", ["--mode", "sum", "--scale", "2"], 2.0, 2.0),
    ],
)
def test_open_clip_reads_what_is_exported(
    file_name: str, arguments: list[str], first: float, second: float,
    run: Path, start: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The model is zero-shot + first * (change of task 1) + second * (change of task 2)."""
    file = tmp_path / file_name
    printed = ask(capsys, "export", run, file, *arguments)
    assert "tensors are equal bit for bit; features of 8 test images and 6 prompts" in printed
    found = open_clip.create_model("mini", pretrained=str(file)).state_dict()
    one, two = values(run, 1), values(run, 2)
    for name, value in start.items():
        tensor = found[name.removeprefix("clip.")]
        if name not in one:
            assert torch.equal(tensor, value)
            continue
        wanted = value + first * (one[name] - value) + second * (two[name] - value)
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-6)
        assert not torch.equal(tensor, value)
    assert len(found) == len(start)
    (model,) = re.findall(r"run.py --model '?(.*?)'?\n", printed)
    assert model == f"mini:{file}"
    loaded = create_classifier(model)
    assert all(torch.equal(found[key], v) for key, v in loaded.clip.state_dict().items())


def test_a_file_is_replaced_only_by_force(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.pt"
    file.write_text("precious")
    assert "--force replaces it" in refused(capsys, "export", run, file)
    assert file.read_text() == "precious"
    ask(capsys, "export", run, file, "--force")
    assert file.stat().st_size > 1e6


def wrong_file(state: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    return save({**state, "logit_scale": torch.nextafter(state["logit_scale"], torch.tensor(9.0))})


@pytest.mark.parametrize(
    ("module", "name", "value", "says"),
    [
        (checkpoint_file, "save", wrong_file, "does not read back"),
        (
            checkpoint_file,
            "save",
            lambda state, _: save({"x": torch.ones(1)}),
            "open_clip cannot load",
        ),
        (bank_export, "TOLERANCE", -1.0, "differ by"),
    ],
)
def test_a_file_that_fails_its_check_does_not_stay(
    module: ModuleType, name: str, value: object, says: str, run: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(module, name, value)
    assert main(["bank", "export", str(run), str(tmp_path / "x.safetensors"), *PLUGIN]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["x.bin"], ".safetensors or .pt"),
        (["x.pt", "--mode", "avg"], "--mode avg"),
        (["x.pt", "--mode", "routed"], "chooses weights for each image"),
        (["x.pt", "--mode", "fisher"], "run.py merge"),
        (["x.pt", "--mode", "regmean"], "merge RUN --method regmean"),
        (["x.pt", "--alpha", "0.3"], "--alpha has no effect"),
        (["x.pt", "--mode", "ties", "--density", "2"], "density"),
        (["x.pt", "--task", "3"], "holds 2 tasks"),
        (["x.pt", "--task", "0"], "holds 2 tasks"),
    ],
)
def test_wrong_requests_are_refused(
    arguments: list[str], says: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, "export", run, tmp_path / arguments[0], *arguments[1:])
    assert not list(tmp_path.iterdir())


def test_what_is_no_part_of_the_model_is_not_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = DeltaBank.create(tmp_path / "bank", BASE, "coop")
    made.append({"context": torch.ones(4, 8)}, ["cat"])
    assert "'context', which is not a parameter" in refused(
        capsys, "export", tmp_path, tmp_path / "x.pt"
    )


def test_a_model_of_a_folder_is_exported_into_a_copy_of_it(
    tmp_path: Path, start: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {name.removeprefix("clip."): value for name, value in start.items()}
    config = {"model_cfg": json.loads((MINI_FOLDER / "mini.json").read_text())}
    for name in ("model", "copy-safetensors", "copy-pt"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "open_clip_config.json").write_text(json.dumps(config))
    save_file(weights, tmp_path / "model" / "open_clip_model.safetensors")
    arguments = ["--model", f"local-dir:{tmp_path / 'model'}", "--quiet", "--output"]
    assert main([*TRAINED, *arguments, str(tmp_path / "runs")]) == 0
    (file,) = (tmp_path / "runs").glob("*/config.yaml")
    last = values(file.parent, 2)
    wanted = {name: last.get(f"clip.{name}", value) for name, value in weights.items()}
    for ending in ("safetensors", "pt"):
        exported, copy = tmp_path / f"x.{ending}", tmp_path / f"copy-{ending}"
        printed = ask(capsys, "export", file.parent, exported)
        (place,) = re.findall(r"named (\S+):", printed)
        shutil.copy(exported, copy / place)
        found = create_classifier(f"local-dir:{copy}").clip.state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def test_help_is_quick() -> None:
    code = (
        "import sys; from cl_clipfit.cli.app import main; main(['bank', '--help']);"
        "main(['bank', 'export', '--help']);"
        "print([m for m in ('torch', 'avalanche', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--alpha" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
