"""Predictions of real runs agree with their tables, and are kept whatever computes the scores."""

import json
from pathlib import Path

import numpy as np
import pytest

from cl_clipfit import Result, load_results
from cl_clipfit.cli.app import main
from cl_clipfit.storage.predictions import read_predictions
from cl_clipfit.training.strategy import CLIPStrategy
from tests.support.kills import Killed
from tests.support.tiny import TINY

SMALL = [*TINY, "--tasks", "3", "--epochs", "1", "--lr", "0.01", "--quiet"]
METHODS = ["zero-shot", "mergetune:landscape=off,merge_epochs=1", "lda", "stack"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("runs")
    assert main([*SMALL, "--strategy", *METHODS, "--output", str(made)]) == 0
    return made


def check_tables(result: Result) -> None:
    """Compare every cell that both hold with the accuracy of the predictions."""
    rows = read_predictions(result.path)
    tables = result.content["all_classes_matrix"][:1] + result.content["accuracy_matrix"][1:]
    assert len(rows) == len(tables)
    for row, (kept, cells) in enumerate(zip(rows, tables, strict=True)):
        for task, cell in enumerate(cells):
            if cell is None:
                assert task >= row  # its class is not in the label space
                assert kept.accuracy(task) == 0
            else:
                assert kept.accuracy(task) == cell
        assert (kept.scores[:, :-1] >= kept.scores[:, 1:]).all()


def test_the_accuracy_of_the_predictions_is_the_table_cell_for_cell(output: Path) -> None:
    results = load_results(output)
    assert sorted(result.label for result in results) == sorted(METHODS)
    for result in results:
        check_tables(result)


def test_a_changed_byte_of_them_is_found(output: Path, tmp_path: Path, refused: object) -> None:
    (run,) = output.glob("*-lda-*")
    file = run / "predictions/row-002.npz"
    assert main(["verify", str(run)]) == 0
    before = file.read_bytes()
    file.write_bytes(before[:-1] + b"\1")
    assert "predictions/row-002.npz is changed" in refused("verify", run)  # type: ignore[operator]
    file.write_bytes(before)


def test_none_are_kept_where_none_are_wanted(tmp_path: Path) -> None:
    command = [*SMALL, "--strategy", "zero-shot", "--output", str(tmp_path)]
    assert main([*command, "--no-predictions"]) == 0
    (result,) = load_results(tmp_path)
    assert read_predictions(result.path) == []
    assert "no_predictions: true" in (result.path / "config.yaml").read_text()
    assert main([*command, "--fresh"]) == 0  # the same run: the option changes no number
    (again,) = load_results(tmp_path)
    assert again.path == result.path
    assert again.accuracy_matrix == result.accuracy_matrix
    check_tables(again)
    assert main([*command, "--fresh", "--no-predictions"]) == 0
    assert read_predictions(result.path) == []


def test_features_have_predictions_too(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    text = draw.normal(size=(4, 6)).astype(np.float32)
    labels = np.arange(24) % 4
    images = text[labels] + draw.normal(size=(24, 6)).astype(np.float32)
    np.savez(
        tmp_path / "f.npz", train_x=images, train_y=labels, test_x=images, test_y=labels,
        text=text, classnames=np.array(["a", "b", "c", "d"]),
    )  # fmt: skip
    command = ["--scenario", "features", "--data-dir", str(tmp_path / "f.npz"), "--tasks", "2"]
    made = str(tmp_path / "runs")
    assert main([*command, "--strategy", "lda", "--output", made, "--quiet"]) == 0
    (result,) = load_results(made)
    check_tables(result)


def test_a_resumed_run_keeps_all_rows_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*SMALL, "--strategy", "clipfit", "--output", str(tmp_path)]
    train = CLIPStrategy.train
    calls = []

    def killed(self: CLIPStrategy, *arguments: object, **more: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return train(self, *arguments, **more)

    monkeypatch.setattr(CLIPStrategy, "train", killed)
    with pytest.raises(Killed):
        main([*command, "--no-predictions"])
    assert main(command) == 0
    (result,) = load_results(tmp_path)
    assert read_predictions(result.path) == []
    assert json.loads((result.path / "result.json").read_text())["complete"]
    calls.clear()
    with pytest.raises(Killed):
        main([*command, "--fresh"])
    assert main(command) == 0
    check_tables(load_results(tmp_path)[0])
