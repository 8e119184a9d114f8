"""A `result.json` from anywhere is read as a run wrote it, or refused in a line."""

import copy
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cl_clipfit.cli.app import main
from cl_clipfit.errors import UserError
from cl_clipfit.report.csv_tables import comparison_csv
from cl_clipfit.report.figures import plot_changes, plot_comparison, plot_run
from cl_clipfit.report.tables import results_table
from cl_clipfit.storage.result import RESULT, read_result
from tests.support.tiny import PLUGIN, TINY

# What takes the place of a value: nothing, or something else.
NEW: list[tuple[Any, ...]] = [
    (), (None,), ("x",), (-1,), (0.5,), ([],), ({},), ([[]],), ({"a": []},), (float("nan"),),
]  # fmt: skip
FIGURES = {"curves", "all_classes_matrix", "change_by_layer", "model", "label", "tasks"}  # read by


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that merges: its result has every part that one can have."""
    output = tmp_path_factory.mktemp("runs")
    method = ["--strategy", "mergetune:landscape=off,merge_epochs=1", "--probe", "tiny-stream"]
    assert main([*TINY, *method, "--tasks", "2", "--quiet", "--output", str(output)]) == 0
    (found,) = output.glob("*-s0-*")
    return found


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    found = read_result(folder / RESULT)
    assert found is not None
    return found


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to everything in a result, of lists to their first item."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, item in items:
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))
        else:
            yield (*path, key)


def changed(result: dict[str, Any], path: tuple[Any, ...], *new: Any) -> dict[str, Any]:
    """Return a copy with something else at a place, or nothing."""
    found = copy.deepcopy(result)
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    if new:
        inner[path[-1]] = new[0]
    else:
        del inner[path[-1]]
    return found


def show(result: dict[str, Any], folder: Path | None) -> None:
    """Do what commands do with the result of a finished run."""
    Console(file=io.StringIO()).print(results_table([result, result]))
    comparison_csv([result], ["run"])
    if folder is None:
        return
    plot_run(result, folder / "curves")
    plot_changes(result, folder / "what_moved")
    plot_comparison([result, result], folder / "comparison")


def test_whatever_stands_in_a_result_is_shown_or_refused(
    result: dict[str, Any], tmp_path: Path
) -> None:
    file, counts = tmp_path / RESULT, {True: 0, False: 0}
    changes = [(place, *new) for place in places(result) for new in NEW]
    for place, *new in random.Random(0).sample(changes, 500):
        file.write_text(json.dumps(changed(result, place, *new)))
        try:
            found = read_result(file)
        except UserError as error:
            assert str(error).startswith(f"{file} ")
            assert len(str(error).splitlines()) == 1
            counts[False] += 1
            continue
        assert (found is None) == (place == ("complete",))
        if found is not None:
            counts[True] += 1
            show(found, tmp_path if place[0] in FIGURES else None)
    assert min(counts.values()) > 100


def test_a_result_of_a_run_is_read_as_it_is(folder: Path, result: dict[str, Any]) -> None:
    assert result == json.loads((folder / RESULT).read_text())


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff", '{"complete": true}'], ids=repr)
def test_what_is_no_result_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / RESULT).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="--fresh"):
        read_result(tmp_path / RESULT)


def test_a_run_with_another_result_is_refused_by_every_command(
    folder: Path, result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / folder.name
    run.mkdir()
    for name in ("config.yaml", "MANIFEST.sha256"):
        (run / name).write_bytes((folder / name).read_bytes())
    (run / RESULT).write_text(json.dumps(changed(result, ("data", "sha256"))))
    commands = (["verify"], ["bank", "eval", "--mode", "latest"], ["landscape"])
    for command in commands:
        assert main([*command[:2], str(run), *command[2:], *PLUGIN]) == 2
        assert f"{run / RESULT} is not what a run writes: data.sha256" in capsys.readouterr().err
