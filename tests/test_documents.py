"""Code in the documents runs as it is written."""

import doctest
import re
from pathlib import Path

import matplotlib
import pytest

ROOT = Path.cwd()


def test_the_python_block_of_the_readme_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "load_run" in block]
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block, names)
    assert "| clipfit" in capsys.readouterr().out
    assert Path("curves.png").stat().st_size > 0
    assert names["table"].shape == (6, 5)  # type: ignore[attr-defined]
    assert matplotlib.rcParams["font.size"] == matplotlib.rcParamsDefault["font.size"]


def test_the_worked_example_of_the_metrics_is_computed_as_written() -> None:
    (block,) = re.findall(r"```pycon\n(.*?)```", (ROOT / "docs/metrics.md").read_text(), re.DOTALL)
    example = doctest.DocTestParser().get_doctest(block, {}, "metrics.md", None, None)
    assert doctest.DocTestRunner().run(example) == (0, 10)


def test_every_relative_link_leads_to_a_file() -> None:
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
    written = ROOT / "docs/reference"  # by the build of the site, whose links Sphinx checks
    links = {
        (file, target.partition("#")[0])
        for file in files
        if written not in file.parents
        for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text())
        if not re.match(r"[a-z]+:|#", target)
    }
    assert len(links) > 50
    missing = [(file.name, path) for file, path in links if not (file.parent / path).exists()]
    assert not missing
