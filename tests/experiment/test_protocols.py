"""Scenarios made of others, and options of any stream, as a user types them."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from cl_clipfit.cli.app import main
from cl_clipfit.clip import create_classifier
from cl_clipfit.experiment.reopen import open_run
from cl_clipfit.registry import Registry
from cl_clipfit.report.display import ConsoleDisplay
from cl_clipfit.scenarios import split_digits
from cl_clipfit.storage.run_folder import read_result
from tests.support.tiny import FROZEN, PLUGIN, TINY, TRAINED

QUICK = ["--shots", "2", "--epochs", "1", "--quiet"]


def run(output: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """Run a command; return the results by the name of the strategy."""
    assert main([*arguments, "--output", str(output)]) == 0
    found = [read_result(path) for path in output.glob("*/result.json")]
    return {result["strategy"]: result for result in found if result}


def refuse(capsys: pytest.CaptureFixture[str], output: Path, *arguments: str) -> str:
    """Run a command that is refused before anything is trained; return its line."""
    capsys.readouterr()
    assert main([*arguments, "--output", str(output)]) == 2
    assert not output.exists()
    return capsys.readouterr().err.splitlines()[-1]


def test_base_to_novel_ranks_each_half_among_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = "base-to-novel:dataset=split-digits"
    found = run(tmp_path, "--scenario", scenario, "--strategy", "zero-shot", "linear-head",
                "--probe", "glyph-letters", *QUICK)  # fmt: skip
    source = split_digits.load(split_digits.Options(), None)  # type: ignore[arg-type]
    model = create_classifier("mini")
    model.add_classes(source.class_names, source.templates)
    with torch.no_grad():
        scores = model(source.test.images)
    halves = []
    for classes in (range(5), range(5, 10)):
        own = torch.isin(source.test.labels, torch.tensor(classes))
        chosen = scores[own][:, list(classes)].argmax(1) + classes.start
        halves.append(100 * (chosen == source.test.labels[own]).float().mean().item())
    base, novel = halves
    metrics = found["zero-shot"]["metrics"]
    assert metrics["base"] == pytest.approx(base)
    assert metrics["novel"] == pytest.approx(novel)
    assert metrics["harmonic_mean"] == pytest.approx(2 * base * novel / (base + novel))
    head = found["linear-head"]
    assert [task["train_samples"] for task in head["tasks"]] == [10, 0]
    assert head["recipe"]["lr"] == 3e-3  # what linear-head says of split-digits
    assert head["metrics"]["novel"] == pytest.approx(novel)  # rows of novel classes stay
    assert head["metrics"]["base"] != pytest.approx(base)
    assert "harmonic" in capsys.readouterr().out


def test_mtil_is_scored_with_and_without_the_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = "mtil:datasets=[split-digits,glyph-letters]"
    found = run(tmp_path, "--scenario", scenario, "--model", "mini", "--strategy", "zero-shot",
                "coop", "--probe", "pretraining-shapes", "--limit", "4", *QUICK)  # fmt: skip
    zero, coop = found["zero-shot"], found["coop"]
    assert [task["name"] for task in zero["tasks"]] == ["split-digits", "glyph-letters"]
    assert [task["test_samples"] for task in zero["tasks"]] == [40, 104]
    assert zero["templates"][0] != zero["templates"][-1]
    aware = zero["task_aware_matrix"]
    assert zero["metrics"]["mtil_last"] == pytest.approx(sum(aware[-1]) / 2)
    assert zero["metrics"]["transfer"] == pytest.approx(aware[1][1])
    # 36 classes to choose from are harder than 10 or 26
    assert zero["metrics"]["last_accuracy"] < zero["metrics"]["mtil_last"]
    assert any("one template for all classes" in text for text in coop["warnings"])
    assert "Transfer" in capsys.readouterr().out


def test_x_tail_is_scored_among_the_classes_of_all_data_sets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = "x-tail:datasets=split-digits+glyph-letters"
    found = run(tmp_path, "--scenario", scenario, "--model", "mini", "--strategy", "zero-shot",
                "lda", "--probe", "pretraining-shapes", "--limit", "4")  # fmt: skip
    zero, lda = found["zero-shot"], found["lda"]
    assert [task["name"] for task in zero["tasks"]] == ["split-digits", "glyph-letters"]
    table = np.array(lda["all_classes_matrix"])
    assert lda["metrics"]["x_tail_transfer"] == pytest.approx(table[1, 1])
    assert lda["metrics"]["x_tail_average"] == pytest.approx(table[1:].mean())
    assert lda["metrics"]["x_tail_last"] == pytest.approx(table[-1].mean())
    # Nobody says which data set an image is from, so that letters compete with digits.
    assert zero["metrics"]["x_tail_last"] < zero["metrics"]["mtil_last"]
    out = capsys.readouterr().out
    assert "Transfer" in out
    assert "task-aware" not in out


def test_cross_dataset_shows_a_column_a_probe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(
        tmp_path, "--scenario", "cross-dataset:dataset=split-digits", "--strategy", "zero-shot",
        "--probe", "glyph-letters", "pretraining-shapes", "--quiet",
    )  # fmt: skip
    zero = found["zero-shot"]
    last = [values[-1] for values in zero["probes"].values()]
    assert zero["metrics"]["probe_accuracy"] == pytest.approx(sum(last) / 2)
    assert len(zero["tasks"]) == 1
    out = capsys.readouterr().out
    assert "glyph-" in out
    assert f"{last[0]:.1f}" in out


def test_a_scenario_made_of_others_is_no_part_of_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    line = refuse(capsys, out, "--scenario", "base-to-novel:dataset=base-to-novel")
    assert "cannot be part of another one" in line
    line = refuse(capsys, out, "--scenario", "base-to-novel:dataset=split-digit")
    assert "Did you mean 'split-digits'" in line
    line = refuse(capsys, out, "--scenario", "mtil:datasets=[split-digits,split-digits]")
    assert "named twice" in line
    line = refuse(capsys, out, "--scenario", "split-digits:dataset")
    assert "--scenario split-digits:dataset: expected NAME:key=value" in line


def test_online_trains_once_and_keeps_its_optimiser(tmp_path: Path) -> None:
    """One experience a task, once, in batches as large as the pieces would give other steps."""
    whole = run(tmp_path / "a", *TRAINED, "--epochs", "1", "--batch-size", "4", "--quiet")
    pieces = run(tmp_path / "b", *TRAINED, "--online", "8", "--batch-size", "4", "--quiet")
    one, other = whole["image-norms"], pieces["image-norms"]
    assert other["recipe"]["epochs"] == 1
    assert other["stream"] == {"online": 8}
    assert one["tasks"] == other["tasks"]
    assert len(other["accuracy_matrix"]) == len(one["accuracy_matrix"])  # a row a task
    again = run(tmp_path / "c", *TRAINED, "--online", "8", "--batch-size", "4", "--quiet")
    assert again["image-norms"]["all_classes_matrix"] == other["all_classes_matrix"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--online", "8", "--epochs", "3"], "--online sees every image once"),
        (["--online", "8", "--set", "image-norms.epochs=2"], "--online sees every image once"),
        (["--online", "0"], "--online"),
        (["--blurry", "1.5"], "--blurry"),
        (["--base-classes", "6"], "--base-classes 6 with --tasks 2"),
        (["--tasks", "none.yaml"], "expected a number or a YAML file"),
        (["--class-order", "none.txt"], "none.txt"),
        (["--class-names", "none.txt"], "there is no such file"),
        (["--split", "none.json"], "there is no such file"),
        (["--split", "pyproject.toml"], "this data set does not consist of image files"),
        (["--limit", "0"], "--limit"),
        (["--model", "features"], "takes images, name a model"),
    ],
)
def test_options_that_make_no_stream_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refuse(capsys, tmp_path / "runs", *TRAINED, *arguments)


def test_a_second_stage_is_refused_online(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [*TINY, "--strategy", "mergetune:host=image-norms", "--online", "8"]
    assert "they are seen once" in refuse(capsys, tmp_path / "runs", *wanted)
    run(tmp_path / "done", *TRAINED, "--online", "8", "--quiet")
    (folder,) = (p for p in (tmp_path / "done").iterdir() if p.is_dir())
    assert main(["merge", str(folder), "--method", "mergetune", *PLUGIN]) == 2
    assert "this run saw them once" in capsys.readouterr().err
    assert main(["merge", str(folder), "--method", "mean", *PLUGIN]) == 0


def write_folder(root: Path) -> Path:
    """Write a folder of 4 classes of one colour each, of several sizes, one file unreadable."""
    for part, count in (("train", 5), ("test", 3)):
        for label in range(4):
            folder = root / part / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                colour = (60 * label, 255 - 60 * label, 10 * number)
                Image.new("RGB", (20 + number, 30), colour).save(folder / f"{number}.png")
    (root / "train" / "class_2" / "0.png").write_bytes(b"")
    return root


def test_a_folder_runs_as_it_is_and_config_yaml_repeats_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_folder(tmp_path / "data")
    (tmp_path / "names.yaml").write_text("class 1: green thing\n")
    (tmp_path / "tasks.yaml").write_text("odd: [green thing, class 3]\neven: [class 0, class 2]\n")
    base = ["--scenario", "folder", "--data-dir", str(data), "--model", "mini", "--probe",
            "--strategy", "linear-head", "--epochs", "1"]  # fmt: skip
    assert main([*base, "--output", str(tmp_path / "none")]) == 2
    assert "1 of 20 images cannot be read" in capsys.readouterr().err
    more = ["--skip-bad-images", "--class-names", str(tmp_path / "names.yaml"),
            "--tasks", str(tmp_path / "tasks.yaml"), "--quiet"]  # fmt: skip
    (result,) = run(tmp_path / "a", *base, *more).values()
    assert result["data"]["skipped_images"] == 1
    assert [(t["name"], t["classes"]) for t in result["tasks"]] == [
        ("odd", ["green thing", "class 3"]),
        ("even", ["class 0", "class 2"]),
    ]
    assert result["class_order"] == [1, 3, 0, 2]
    assert [t["train_samples"] for t in result["tasks"]] == [10, 9]
    (folder,) = (p for p in (tmp_path / "a").iterdir() if p.is_dir())
    monkeypatch.chdir(tmp_path)  # its paths do not depend on where it is run
    monkeypatch.setenv("CL_CLIPFIT_IMAGE_GIB", "0")  # nor its numbers on what fits into memory
    (again,) = run(tmp_path / "b", "--config", str(folder / "config.yaml"), "--quiet").values()
    for key in ("digest", "accuracy_matrix", "all_classes_matrix", "class_order", "data"):
        assert again[key] == result[key], key
    assert main(["bank", "eval", str(folder), "--mode", "latest", *PLUGIN]) == 0
    modes = json.loads((folder / "bank-eval.json").read_text())["modes"]
    assert modes[0]["metrics"]["last_accuracy"] == result["metrics"]["last_accuracy"]


def test_lazily_read_images_train_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with augmentation and a tuned image tower, in worker processes."""
    data = write_folder(tmp_path / "data")
    tables = []
    for gib in ("1", "0"):
        monkeypatch.setenv("CL_CLIPFIT_IMAGE_GIB", gib)
        (result,) = run(
            tmp_path / gib, "--scenario", "folder", "--data-dir", str(data), "--model", "mini",
            "--tasks", "2", "--probe", "--strategy", "clipfit:augmentation=crop-flip,epochs=1",
            "--skip-bad-images", "--quiet",
        ).values()  # fmt: skip
        bank = [file.read_bytes() for file in sorted((tmp_path / gib).glob("*/bank/*"))]
        tables.append((result["all_classes_matrix"], result["digest"], bank))
        assert len(bank) > 2
    assert tables[0] == tables[1]


def test_probes_are_looked_for_beside_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_folder(tmp_path / "data" / "folder")
    probe = write_folder(tmp_path / "data" / "imagenet-sketch")
    out = tmp_path / "runs"
    line = refuse(
        capsys, out, "--scenario", "cross-dataset:dataset=folder", "--data-dir",
        str(data.parent), "--probe", "imagenet-sketch", "--model", "mini",
    )  # fmt: skip
    assert str(probe) in line


def test_every_scenario_says_what_the_list_shows() -> None:
    wanted = {
        "split-cifar100", "split-cifar10", "split-tiny-imagenet", "split-imagenet-r",
        "split-cub200", "split-cars196", "split-imagenet100", "split-imagenet1k",
        "split-fashion-mnist", "mtil", "x-tail", "base-to-novel", "cross-dataset",
        "imagenet-shifts", "domain-incremental", "folder", "features",
    }  # fmt: skip
    entries = {entry.name: entry for entry in Registry().entries("scenarios")}
    assert wanted <= set(entries)
    mtil = entries["mtil"].about
    for order in mtil["ORDERS"].values():
        assert len(set(order)) == mtil["TASKS"] == 11
        assert set(order) <= set(entries)
        assert sum(entries[name].about["CLASSES"] for name in order) == mtil["CLASSES"]
    x_tail = entries["x-tail"].about
    assert set(x_tail["DATASETS"]) == set(mtil["ORDERS"][1]) - {"split-cifar100"}
    assert x_tail["TASKS"] == len(x_tail["DATASETS"])
    assert x_tail["CLASSES"] == mtil["CLASSES"] - entries["split-cifar100"].about["CLASSES"]
    for name in ("cross-dataset", "imagenet-shifts"):
        assert set(entries[name].about["PROBES"]) <= set(entries)


def test_zero_shot_needs_no_probe_and_no_training(tmp_path: Path) -> None:
    (result,) = run(tmp_path, *FROZEN, "--blurry", "0.2", "--quiet").values()
    assert result["stream"] == {"blurry": 0.2}
    (plain,) = run(tmp_path / "plain", *FROZEN, "--quiet").values()
    assert plain["all_classes_matrix"] == result["all_classes_matrix"]  # test images stay


def folders(output: Path) -> list[Path]:
    return sorted(path for path in output.iterdir() if path.is_dir())


def test_a_run_is_the_same_whatever_fits_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its folder too, with a probe of files: another machine's memory must not disown it."""
    write_folder(tmp_path / "data" / "folder")
    command = ["--scenario", "split-digits", "--strategy", "linear-head", "--limit", "2",
               "--data-dir", str(tmp_path / "data"), "--probe", "folder",
               "--set", "folder.test_share=0.3", "--skip-bad-images", *QUICK]  # fmt: skip
    for gib in ("1", "0"):
        monkeypatch.setenv("CL_CLIPFIT_IMAGE_GIB", gib)
        run(tmp_path / "runs", *command)
    (folder,) = folders(tmp_path / "runs")
    assert main(["bank", "eval", str(folder), "--mode", "latest", *PLUGIN]) == 0


def test_changed_images_are_never_scored_by_old_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of equal size and time stamp, two classes swapped, read anew at every use."""
    monkeypatch.setenv("CL_CLIPFIT_IMAGE_GIB", "0")
    for label, colour in enumerate(((250, 10, 10), (10, 10, 250))):
        for part in ("train", "test"):
            folder = tmp_path / "data" / part / ("red circle", "blue circle")[label]
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (20, 20 + number), colour).save(folder / f"{number}.bmp")

    def stamp() -> None:
        for file in tmp_path.glob("data/*/*/*.bmp"):
            os.utime(file, (1e9, 1e9))

    command = ["--scenario", "folder", "--data-dir", str(tmp_path / "data"), "--model", "mini",
               "--tasks", "1", "--strategy", "zero-shot", "--probe", "--quiet"]  # fmt: skip
    stamp()
    (before,) = run(tmp_path / "a", *command).values()
    for part in ("train", "test"):
        root = tmp_path / "data" / part
        (root / "red circle").rename(root / "x")
        (root / "blue circle").rename(root / "red circle")
        (root / "x").rename(root / "blue circle")
    stamp()
    (after,) = run(tmp_path / "b", *command).values()
    assert after["digest"] != before["digest"]
    last = [r["metrics"]["last_accuracy"] for r in (before, after)]
    assert sum(last) == pytest.approx(100)
    assert last[0] != last[1]


def test_landscapes_of_blurry_runs_rank_the_classes_that_were_trained(tmp_path: Path) -> None:
    run(tmp_path, *TRAINED, "--blurry", "0.5", "--quiet")
    (folder,) = folders(tmp_path)
    finished = open_run(folder, ConsoleDisplay(Console(), quiet=True))
    for task, experience in enumerate(finished.scenario.benchmark.train_stream, 1):
        finished.at_task(task)
        assert finished.strategy.task_classes == experience.task_classes
    assert (
        main(["landscape", str(folder), "--no-plane", "--images", "8", "--task", "1", *PLUGIN]) == 0
    )
    assert main(["bank", "eval", str(folder), "--mode", "fisher", *PLUGIN]) == 0


def test_skipped_images_are_counted_for_every_seed_and_shots_that_lack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_folder(tmp_path / "data")
    (data / "test" / "class_1" / "0.png").write_bytes(b"")
    assert main([
        "--scenario", "folder", "--data-dir", str(data), "--model", "mini", "--tasks", "2",
        "--strategy", "zero-shot", "--probe", "--skip-bad-images", "--shots", "5", "--seed", "0",
        "1", "--output", str(tmp_path / "runs"),
    ]) == 0  # fmt: skip
    results = [read_result(folder / "result.json") for folder in folders(tmp_path / "runs")]
    assert [result["data"]["skipped_images"] for result in results if result] == [2, 2]
    assert [r["data"]["classes_with_fewer_shots"] for r in results if r] == [1, 1]
    assert "1 classes have fewer than 5 shots" in capsys.readouterr().err


def test_a_file_that_turns_out_damaged_is_named_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker process finds it while training, since only headers were looked at before."""
    monkeypatch.setenv("CL_CLIPFIT_IMAGE_GIB", "0")
    data = write_folder(tmp_path / "data")
    path = data / "train" / "class_2" / "0.png"
    Image.fromarray(torch.randint(0, 256, (60, 60, 3)).byte().numpy()).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    assert main([
        "--scenario", "folder", "--data-dir", str(data), "--model", "mini", "--tasks", "1",
        "--strategy", "clipfit", "--probe", "--epochs", "1", "--output", str(tmp_path / "runs"),
    ]) == 2  # fmt: skip
    line = capsys.readouterr().err.splitlines()[-1]
    assert "class_2/0.png cannot be read as an image" in line
    assert "Traceback" not in line


def test_validation_leaves_novel_classes_untested(tmp_path: Path) -> None:
    found = run(tmp_path, "--scenario", "base-to-novel", "--validation", "0.3", "--strategy",
                "zero-shot", "--limit", "6", "--quiet")  # fmt: skip
    metrics = found["zero-shot"]["metrics"]
    assert metrics["base"] is not None
    assert metrics["novel"] is None
    assert metrics["harmonic_mean"] is None


def test_a_data_dir_that_nothing_is_read_from_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "runs", write_folder(tmp_path / "data")
    for scenario in ("mtil:datasets=[dtd,eurosat]", "split-digits"):
        line = refuse(capsys, out, "--scenario", scenario, "--model", "mini", "--probe",
                      "imagenet-v2", "--data-dir", str(data))  # fmt: skip
        assert "holds none of the folders" in line
        assert "imagenet-v2" in line
    line = refuse(capsys, out, "--scenario", "split-digits", "--data-dir", str(data))
    assert "split-digits needs no data" in line


def test_other_task_names_are_another_run(tmp_path: Path) -> None:
    file = tmp_path / "tasks.yaml"
    for names in ("one", "two"):
        file.write_text(f"{names}: [0, 1, 2]\nlater: [3, 4, 5]\n")
        run(tmp_path / "runs", *FROZEN, "--tasks", str(file), "--quiet")
    assert len(folders(tmp_path / "runs")) == 2


def test_train_and_test_are_no_domains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_folder(tmp_path / "data")
    line = refuse(capsys, tmp_path / "runs", "--scenario", "domain-incremental", "--data-dir",
                  str(data), "--model", "mini")  # fmt: skip
    assert "use --scenario folder" in line


def test_a_folder_above_the_data_is_not_taken_for_one_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "all" / "data")
    line = refuse(capsys, tmp_path / "runs", "--scenario", "folder", "--data-dir",
                  str(tmp_path / "all"), "--model", "mini")  # fmt: skip
    assert f"is one level above a data set, which is {tmp_path}/all/data" in line
    (tmp_path / "all" / "data" / "test").rename(tmp_path / "other")
    line = refuse(capsys, tmp_path / "runs", "--scenario", "folder", "--data-dir",
                  str(tmp_path / "all"), "--model", "mini")  # fmt: skip
    assert "holds one class, 'data': name the folder that holds the folders of all" in line
