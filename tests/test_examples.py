"""Every example runs as it is, in an empty folder; the notebook cell by cell."""

import ast
import json
import re
import runpy
from pathlib import Path

import pytest

FOLDER = Path.cwd() / "examples"
SAYS = {
    "compare_methods": r"\\begin\{tabular\}.*zero-shot.*lda: [+-]\d+\.\d points over zero-shot",
    "avalanche_users": r"accuracy: \d\d\.\d %",
    "own_images": r"last accuracy: \d+\.\d %, in runs/folder-clipfit-s0-images.*circle: \d+ %",
    "task_deltas": r"after task 2, \d+ tensors differ; clip\..* moved most.*halfway: \['",
    "follow_a_run": r"after task 2: .* %.*loss \d\.\d+, cross-entropy \d\.\d+, distillation 0\.",
}
LEAVES = {"compare_methods": "methods.svg", "avalanche_users": "logs/eval_results.csv"}


def test_the_examples_are_these() -> None:
    plugins = {"image_norms"}  # shown in the README, and run by many tests
    assert {file.stem for file in FOLDER.glob("*.py")} == set(SAYS) | plugins
    assert [file.name for file in FOLDER.glob("*.ipynb")] == ["first_steps.ipynb"]
    assert all(len(file.read_text().splitlines()) <= 60 for file in FOLDER.glob("*.py"))
    readme = Path("README.md").read_text()
    for file in FOLDER.iterdir():
        assert file.suffix not in (".py", ".ipynb") or f"examples/{file.name}" in readme


@pytest.mark.parametrize("name", SAYS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert re.search(SAYS[name], capsys.readouterr().out, re.DOTALL)
    assert (tmp_path / LEAVES.get(name, ".")).exists()


def test_the_notebook_runs_cell_by_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = json.loads((FOLDER / "first_steps.ipynb").read_text())
    assert notebook["nbformat"] == 4
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    shown = [show_last(cell, names) for cell in cells]
    assert "<table>" in shown[2]._repr_html_()  # type: ignore[attr-defined]
    assert type(shown[3]).__name__ == "Figure"
    assert shown[4].shape == (6, 5)  # type: ignore[attr-defined]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["1 ['zero', 'one']", "2 ['two', 'three']"] and len(lines) == 5 + 3
    assert not any(cell.get("outputs") for cell in notebook["cells"])


def show_last(cell: str, names: dict[str, object]) -> object:
    """Run a cell, and return the value of its last line, as a notebook shows it."""
    *body, last = ast.parse(cell).body
    if not isinstance(last, ast.Expr):
        exec(cell, names)
        return None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)
