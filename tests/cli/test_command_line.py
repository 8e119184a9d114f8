"""The command line: what it writes, what it repeats, and how it refuses bad input."""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from cl_clipfit.cli.app import main
from cl_clipfit.config.command import RunConfig
from cl_clipfit.config.options import read_names
from cl_clipfit.config.parsing import parse_command
from cl_clipfit.experiment.prepare import prepare
from cl_clipfit.experiment.run_plan import resolve
from cl_clipfit.experiment.stream_plan import plan_stream
from cl_clipfit.registry import Registry
from cl_clipfit.report.display import ConsoleDisplay
from tests.support.commands import parse
from tests.support.tiny import FROZEN, MINE, PLUGIN, STREAM, TINY, TRAINED

# Of the default command: the stream, its probes and three strategies.
SMALL = ("--epochs", "1", "--shots", "10", "--limit", "10", "--tasks", "2")
TABLES = ("accuracy_matrix", "all_classes_matrix", "task_aware_matrix")


def run(*arguments: str, output: Path) -> list[dict]:
    """Run a command; return the results in the order of its CSV."""
    assert main([*arguments, "--output", str(output)]) == 0
    (table,) = output.glob("*-comparison.csv")
    lines = table.read_text().splitlines()[1:]
    folders = dict.fromkeys(line.rsplit(",", 1)[1] for line in lines)  # some have several lines
    return [json.loads((output / folder / "result.json").read_text()) for folder in folders]


def test_a_run_leaves_its_folder_and_says_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, tuned, merged, stacked = run(*SMALL, output=tmp_path)
    printed = capsys.readouterr()
    folders = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    assert [folder.name.rsplit("-", 1)[0] for folder in folders] == [
        f"split-digits-{name}"
        for name in (
            "clipfit-s0-epochs=1", "mergetune-s0-epochs=1", "stack-s0-epochs=1", "zero-shot-s0",
        )
    ]  # fmt: skip
    *trained, folder = folders
    moved = {"what_moved.png", "what_moved.svg", "bank", "calibration.json"}
    files = {path.name for path in folder.iterdir()}
    for other in trained:
        kept = set() if "mergetune" in other.name else {"state.safetensors"}
        assert {path.name for path in other.iterdir()} == files | moved | kept
    assert files == {
        "config.yaml", "result.json", "MANIFEST.sha256", "accuracy_matrix.csv", "curves.png",
        "curves.svg", "history.jsonl", "predictions",
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        f"split-digits-comparison.{kind}" for kind in ("png", "svg", "csv")
    }
    for result in (first, tuned, merged, stacked):
        check_result(result)
    assert (first["host"], first["merge"], tuned["merge"]) == (None, None, None)
    check_merge(merged)
    assert first["kept"]["bytes"] == [0, 0]
    assert stacked["kept"]["bytes"][-1] > 8 * 40**2  # fp64 sums of products, 40 random features
    assert "kept from old tasks: mergetune" in printed.out
    rows = [re.split(r"\s+-?\d+\.\d", line)[0] for line in printed.out.splitlines()]
    first_column = " ".join(row.strip() for row in rows)  # cells are folded
    for text in ("wise-ft at the same distance", "host"):  # shown below mergetune, and in the CSV
        assert text in first_column
        assert f"mergetune / {text}," in (tmp_path / "split-digits-comparison.csv").read_text()
    assert first["metrics"]["forgetting_all_classes"] == 0
    assert first["metrics"]["retention"] == 0
    assert first["curves"]["accuracy"] == tuned["curves"]["zero_shot"]
    assert first["change_by_layer"] == [{}] * 2
    assert all(change > 0 for change in tuned["change_by_layer"][-1].values())
    assert "zero-shot seed 0 task 2/2" in printed.err
    assert f"{first['metrics']['last_accuracy']:.1f}" in printed.out


def check_merge(result: dict) -> None:
    """Check what a run of mergetune records of every task."""
    assert result["host"]["name"] == "clipfit"
    assert len(result["merge"]["tasks"]) == 2
    for task in result["merge"]["tasks"]:
        assert len(task["barriers"]) == 4
        assert all(height >= 0 for height in task["barriers"].values())
        assert 0 < task["ratio_to_zero_shot"] < 1.5
    compared = result["merge"]["compared"]
    assert set(compared) == {"host", "wise-ft at the same distance"}
    for other in compared.values():
        assert len(other["all_classes_matrix"]) == 3
        assert other["all_classes_matrix"][0] == result["all_classes_matrix"][0]


def check_result(result: dict) -> None:
    """Check what every result of split-digits holds."""
    assert set(result) == {
        "schema", "scenario", "strategy", "seed", "recipe", "options", "model", "class_order",
        "tasks", *TABLES, "metrics", "curves", "probes", "timings", "peak_memory_bytes",
        "environment", "complete", "label", "data", "scored_on", "templates", "change_by_layer",
        "warnings", "host", "merge", "digest", "protocol", "stream", "precision", "micro_batch",
        "compile_seconds", "seeds", "deterministic", "code", "joint", "kept",
    }  # fmt: skip
    assert [len(result[table]) for table in TABLES] == [3, 3, 3]
    assert result["accuracy_matrix"][0] == [None] * 2
    assert set(result["probes"]) == {"glyph-letters", "pretraining-shapes"}
    assert all(len(values) == 3 for values in result["probes"].values())
    assert len(result["timings"]["train_seconds"]) == 2
    assert len(result["timings"]["eval_seconds"]) == 3
    assert result["class_order"] == list(range(10))
    assert result["tasks"][1]["classes"] == ["five", "six", "seven", "eight", "nine"]
    assert 20e6 < result["peak_memory_bytes"] < 50e9
    assert result["scored_on"] == "test images"
    assert len(result["data"]["sha256"]) == 64


@pytest.mark.parametrize("strategy", ["zero-shot", "image-norms"])
def test_the_same_command_twice_gives_the_same_tables(strategy: str, tmp_path: Path) -> None:
    arguments = [*TINY, "--strategy", strategy]
    first, second = (run(*arguments, output=tmp_path / name)[0] for name in "ab")
    for key in (*TABLES, "metrics", "curves", "probes", "model"):
        assert first[key] == second[key], key
    (one,), (two,) = ((tmp_path / name).glob("tiny-*/") for name in "ab")
    assert one.name == two.name


def test_a_finished_run_is_shown_and_fresh_repeats_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = TRAINED
    run(*arguments, output=tmp_path)
    (file,) = tmp_path.glob("*/result.json")
    stamp = file.stat().st_mtime_ns
    table = capsys.readouterr().out
    run(*arguments, output=tmp_path)
    shown = capsys.readouterr()
    assert file.stat().st_mtime_ns == stamp
    assert "complete, shown again" in shown.err
    assert shown.out == table
    run(*arguments, "--fresh", output=tmp_path)
    assert file.stat().st_mtime_ns != stamp


def test_an_unfinished_run_is_not_taken_for_a_finished_one(tmp_path: Path) -> None:
    run(*FROZEN, output=tmp_path)
    (file,) = tmp_path.glob("*/result.json")
    result = json.loads(file.read_text())
    file.write_text(json.dumps({**result, "complete": False}))
    run(*FROZEN, output=tmp_path)
    assert json.loads(file.read_text())["complete"] is True


@functools.cache
def digests(*arguments: str) -> list[str]:
    """Return the hashes of the runs a command asks for, without running them."""
    config = RunConfig.model_validate(parse(*arguments))
    prepared = prepare(config, ConsoleDisplay(Console(), quiet=True))
    return [prepared.folder(plan).digest for plan in prepared.plans]


@pytest.mark.parametrize(
    "change",
    [
        ["--seed", "1"], ["--lr", "0.5"], ["--batch-size", "3"], ["--epochs", "2"],
        ["--validation", "0.25"], ["--template", "a drawing of a {}."],
        ["--shots", "3"], ["--class-order", "seed:1"], ["--probe", "glyph-letters"],
        ["--tasks", "3"], ["--model", "mini:random"], ["--set", "image-norms.pull=0.5"],
        ["--set", "image-norms.optimizer=sgd"], ["--set", "image-norms.weight_decay=0.1"],
        ["--limit", "3"], ["--online", "4"], ["--blurry", "0.2"],
        ["--base-classes", "4", "--tasks", "2"],
    ],
)  # fmt: skip
def test_whatever_changes_numbers_changes_the_folder(change: list[str]) -> None:
    assert digests(*TRAINED) != digests(*TRAINED, *change)


@pytest.mark.parametrize(
    "same", [["--quiet"], ["--fresh"], ["--output", "x"], ["--epochs", "1"], ["--device", "cpu"]]
)
def test_whatever_changes_no_number_keeps_the_folder(same: list[str]) -> None:
    assert digests(*TRAINED) == digests(*TRAINED, *same)


def test_training_settings_do_not_concern_a_method_without_training() -> None:
    assert digests(*FROZEN) == digests(*FROZEN, "--lr", "0.5")


def test_a_strategy_takes_settings_in_its_name(tmp_path: Path) -> None:
    labels = ["full:lr=1e-4", "full:ce_scope=task,lr=1e-4", "clipfit:kd_weight=2"]
    config = RunConfig.model_validate(parse(*TINY, "--strategy", *labels, "--epochs", "2"))
    registry = Registry(config.plugin)
    one, two, three = resolve(parse_command(config), registry).plans
    assert [p.label for p in (one, two, three)] == labels
    assert [p.strategy.name for p in (one, two, three)] == ["full", "full", "clipfit"]
    assert [p.options.ce_scope for p in (one, two, three)] == ["seen", "task", "task"]
    assert three.options.kd_weight == 2
    assert one.recipe is not None
    assert (one.recipe.lr, one.recipe.epochs) == (1e-4, 2)
    inline = digests(*TINY, "--strategy", "full:ce_scope=task")
    assert inline == digests(*TINY, "--strategy", "full", "--set", "full.ce_scope=task")
    results = run(*FROZEN, "full:ce_scope=task", output=tmp_path)
    again = run(*TINY, "--strategy", "full", "--set", "full.ce_scope=task", output=tmp_path)
    assert [r["label"] for r in results] == ["zero-shot", "full:ce_scope=task"]
    assert again == [results[1]]  # the same run, found under another name


def test_what_is_said_of_one_strategy_wins_over_the_command() -> None:
    arguments = ["--strategy", "full:lr=1e-5", "full", "--lr", "0.5", "--set", "full.lr=2"]
    config = RunConfig.model_validate(parse(*TINY, *arguments))
    registry = Registry(config.plugin)
    plans = resolve(parse_command(config), registry).plans
    assert [plan.recipe and plan.recipe.lr for plan in plans] == [1e-5, 0.5]


def test_names_are_read_from_lists_and_files(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("red panda\n\n  lynx \n")
    assert read_names(str(tmp_path / "names.txt")) == ("red panda", "lynx")
    (tmp_path / "numbered.txt").write_text("0, red panda\n1, lynx\n")
    with pytest.raises(ValueError, match="every line reads 'number, name'"):
        read_names(str(tmp_path / "numbered.txt"))
    assert read_names(["a", "b"]) == ["a", "b"]
    imagenet = read_names("imagenet")
    assert (len(imagenet), imagenet[0]) == (1000, "tench")


def test_config_yaml_repeats_the_run(tmp_path: Path) -> None:
    arguments = [*TRAINED, "--lr", "0.002", "--seed", "4", "--tasks", "3"]
    run(*arguments, "--set", "image-norms.pull=0.25", "--class-order", "seed:3", output=tmp_path)
    (file,) = tmp_path.glob("*/config.yaml")
    assert main(["--config", str(file), *PLUGIN, "--output", str(tmp_path / "again")]) == 0
    (again,) = (tmp_path / "again").glob("*/result.json")
    assert again.parent.name == file.parent.name
    first = json.loads((file.parent / "result.json").read_text())
    assert json.loads(again.read_text())["accuracy_matrix"] == first["accuracy_matrix"]


@pytest.mark.parametrize("option", ["template", "strategy", "probe", "set"])
def test_text_that_looks_like_json_is_text(option: str) -> None:
    texts = ["{}", " {}", "[{}]", '["a {}", "b {}"]', '{"a":1}', "null", "a {}"]
    assert parse(f"--{option}", *texts) == {option: texts}
    assert parse(f"--{option}={texts[0]}") == {option: texts[:1]}


def test_of_a_repeated_option_the_last_counts_and_lists_grow() -> None:
    assert parse("--model", "mini", "--model=other") == {"model": "other"}
    assert parse("--epochs", "1", "--quiet", "--epochs", "2", "--quiet") == {
        "epochs": 2, "quiet": True,
    }  # fmt: skip
    assert parse("--seed", "1", "--seed", "2", "3") == {"seed": [1, 2, 3]}


def test_a_list_is_no_number_and_a_path_of_its_letters(refused: Callable[..., str]) -> None:
    for given in ("[1, 2]", "{}"):
        assert "--seed: input should be a valid integer" in refused("--seed", given)
    assert parse("--plugin", '["a.py"]') == {"plugin": [Path('["a.py"]')]}
    assert '--mode ["mean"]: unknown' in refused("bank", "eval", "x", "--mode", '["mean"]')


def test_options_win_over_the_config_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("scenario: tiny-stream\nstrategy: [zero-shot]\ntasks: 5\nshots: 4\nseed: [3]\n")
    (result,) = run("--config", str(file), "--tasks", "2", *PLUGIN, output=tmp_path / "runs")
    assert (len(result["tasks"]), result["seed"]) == (2, 3)


def test_every_task_leaves_its_trained_values(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    (result,) = run(*TRAINED, output=tmp_path)
    files = sorted(tmp_path.glob("*/bank/task-00?.safetensors"))
    assert [file.name for file in files] == ["task-001.safetensors", "task-002.safetensors"]
    first, second = (load_file(file) for file in files)
    assert sum(v.numel() for v in first.values()) == result["model"]["trainable_parameters"]
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_several_strategies_and_seeds_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(
        *TINY, "--strategy", "zero-shot", "image-norms", "--seed", "0", "1", output=tmp_path
    )
    assert [(r["strategy"], r["seed"]) for r in results] == [
        ("zero-shot", 0), ("zero-shot", 1), ("image-norms", 0), ("image-norms", 1),
    ]  # fmt: skip
    assert "±" in capsys.readouterr().out


def test_a_broken_plugin_is_named_and_the_rest_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_here\n")
    run(*FROZEN, "--plugin", str(broken), output=tmp_path / "runs")
    assert "broken.py fails to import" in capsys.readouterr().err
    broken.write_text("import sys\nsys.exit(0)\n")
    run(*FROZEN, "--quiet", "--plugin", str(broken), output=tmp_path / "runs")
    assert "broken.py fails to import: SystemExit" in capsys.readouterr().err
    assert main(["list", "strategies", "--plugin", str(broken)]) == 0
    assert "zero-shot" in capsys.readouterr().out


def test_an_edited_plugin_or_probe_is_run_anew_with_its_new_code(tmp_path: Path) -> None:
    method, stream = tmp_path / "mine.py", tmp_path / "my_stream.py"
    arguments = ["--scenario", "my-stream", "--strategy", "mine", "--probe", "my-stream"]
    plugins = ["--plugin", str(method), str(stream)]
    scores = MINE + "    learning = 'none'\n    def scores(self, images):\n        import torch\n"
    last = []
    for column, level in ((0, 10), (1, 10), (1, 20)):
        row = [1.0 if c == column else 0.0 for c in range(2)]
        method.write_text(f"{scores}        return torch.tensor([{row}] * len(images))\n")
        stream.write_text(STREAM.format(level=level))
        (result,) = run(*arguments, *plugins, output=tmp_path / "runs")
        last.append(result["all_classes_matrix"][-1])
    assert last == [[50.0], [50.0], [50.0]]
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 3


def test_a_run_does_not_depend_on_its_company(tmp_path: Path) -> None:
    together = run(
        *TINY, "--strategy", "image-norms", "zero-shot", "--seed", "1", "0", output=tmp_path / "a"
    )
    alone = run(*TRAINED, "--seed", "0", output=tmp_path / "b")
    assert together[1]["accuracy_matrix"] == alone[0]["accuracy_matrix"]


def test_bundled_probes_are_on_by_default_with_mini(tmp_path: Path) -> None:
    config = RunConfig(scenario="glyph-letters")
    registry = Registry()
    assert [e.name for e in plan_stream(parse_command(config), registry).probes] == [
        "pretraining-shapes"
    ]
    for other in (RunConfig(model="ViT-B-32:random"), RunConfig(validation=0.2)):
        assert plan_stream(parse_command(other), registry).probes == ()


def test_recipes_are_layered(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "RECIPE = {'optimizer': 'sgd', 'epochs': 7, 'lr': 1.0}\n"
        "RECIPES = {'tiny-stream': {'lr': 2.0, 'momentum': 0.5}}\n" + MINE + "    pass\n"
    )
    arguments = ["--set", "mine.momentum=0.25", "--epochs", "3", "--plugin", str(plugin)]
    config = RunConfig.model_validate(parse(*TINY, "--strategy", "mine", *arguments))
    registry = Registry(config.plugin)
    (plan,) = resolve(parse_command(config), registry).plans
    assert plan.recipe is not None
    assert plan.recipe.model_dump() == {
        "epochs": 3, "batch_size": 16, "optimizer": "sgd", "lr": 2.0, "weight_decay": 0.0,
        "momentum": 0.25, "schedule": "cosine", "warmup_epochs": 0, "warmup_lr": 1e-5,
        "augmentation": "none", "crop_scale": 0.08, "drop_last": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["list", "strategies"], "zero-shot"),
        (["list", "scenarios", "shapes100"], "split-shapes100"),
        (["list", "models", "ViT-B-16-quickgelu"], "openai"),
        (["list", "models", "MINI"], "CONFIG.json:FILE"),
        (["list", "strategies", "CLIPfit"], "clipfit"),
        (["info", "split-shapes100"], "severity"),
        (["info", "zero-shot"], "2103.00020"),
        (["info", "image-norms", *PLUGIN], "pull"),
        (["--help"], "--class-order"),
        (["--version"], "0."),
    ],
)
def test_questions_are_answered(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    assert expected in capsys.readouterr().out


def test_run_py_outside_of_the_environment_says_what_to_type(tmp_path: Path) -> None:
    isolated = [sys.executable, "-S", "-E", str(Path("run.py").resolve())]
    done = subprocess.run(isolated, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode != 0
    assert "make demo" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("predikt", "unknown command 'predikt', commands are bank, list, info, merge"),
        ("fit --lr 1", "unknown command 'fit', commands are bank, list"),
        ("bank lst x", "unknown command 'bank lst', commands are list, show, diff, export, eval"),
        ("--lr 1e-4 5e-4", "'5e-4' is one value too many for --lr, and no command: commands are"),
        ("--epochs=3 train", "'train' is one value too many for --epochs, and no command"),
        ("--quiet yes", "'yes' is one value too many for --quiet"),
        ("verify a b", "verify: 'b' is one argument too many"),
        ("verify a --replay b", "'b' is one value too many for --replay"),
        ("bank show x 1 2", "bank show: '2' is one argument too many"),
    ],
)
def test_a_word_that_is_no_command_is_said_as_that(
    words: str, message: str, refused: Callable[..., str]
) -> None:
    assert f"error: {message}" in refused(*words.split())
