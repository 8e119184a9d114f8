"""RegMean as a mode of `bank eval` and as a method of `merge`, down to the raw inputs."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from cl_clipfit import merging
from cl_clipfit.cli.app import main
from cl_clipfit.commands.evaluate import BankEvaluation
from cl_clipfit.config.merge_settings import ModeSettings
from cl_clipfit.experiment.reopen import open_run
from tests.support.norms import least_squares, normalised_inputs
from tests.support.tiny import PLUGIN, TRAINED


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two tasks."""
    output = tmp_path_factory.mktemp("runs")
    command = [*TRAINED, "--epochs", "2", "--lr", "0.01", "--device", "cpu", "--quiet"]
    assert main([*command, "--output", str(output)]) == 0
    (file,) = output.glob("*/config.yaml")
    return file.parent


def test_a_merge_fits_the_raw_inputs_of_both_tasks(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bank", "eval", str(run), "--mode", "regmean", *PLUGIN]) == 0
    assert "regmean (images=256)" in capsys.readouterr().out
    (mode,) = json.loads((run / "bank-eval.json").read_text())["modes"]
    assert mode["settings"] == {"images": 256}
    assert main(["verify", str(run)]) == 0
    command = ["merge", str(run), "--method", "regmean", *PLUGIN]
    assert main(command) == 0
    (folder,) = run.parent.glob("*-image-norms+regmean-*")
    result = json.loads((folder / "result.json").read_text())
    assert result["merged"]["settings"] == {"images": 256}
    for table in ("accuracy_matrix", "all_classes_matrix"):
        assert result[table] == mode[table]
    assert main(["verify", str(folder)]) == 0
    capsys.readouterr()
    assert main(command) == 0
    assert "complete, shown again" in capsys.readouterr().err

    opened, tasks, inputs = open_run(run), [], []
    for task in (1, 2):
        tasks.append(load_file(run / "bank" / f"task-00{task}.safetensors"))
        images = opened.scenario.train.subset(opened.scenario._members(task - 1)).images
        with opened.strategy.model.weights(tasks[-1]):
            inputs.append(normalised_inputs(opened.strategy.model, images))
    merged = load_file(folder / "bank" / "task-002.safetensors")
    assert len(merged) == 2 * len(inputs[0]) > 0
    mean = merging.mean(tasks)
    assert max(float((merged[name] - mean[name]).abs().max()) for name in mean) > 1e-4
    for norm in inputs[0]:
        rows = [found[norm] for found in inputs]
        kinds = ("weight", "bias")
        tuned = [[task[f"{norm}.{kind}"].double().numpy() for task in tasks] for kind in kinds]
        for kind, wanted in zip(kinds, least_squares(rows, *tuned, 0.9), strict=True):
            np.testing.assert_allclose(merged[f"{norm}.{kind}"], wanted, rtol=0, atol=1e-6)
    first = load_file(folder / "bank" / "task-001.safetensors")
    assert all((first[name] == value).all() for name, value in tasks[0].items())


def test_a_task_weighs_as_much_as_it_has_images_whatever_the_sample(run: Path) -> None:
    evaluation = BankEvaluation(open_run(run), ModeSettings(images=4))
    assert [known.images for known in evaluation._estimate("moments", 2)] == [24, 24]


@pytest.mark.parametrize(
    ("more", "says"),
    [(["--images", "0"], "images"), (["--seed", "1"], "--seed has no effect")],
)
def test_settings_are_checked(
    run: Path, more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(run), "--method", "regmean", *more, *PLUGIN]) == 2
    assert says in capsys.readouterr().err
