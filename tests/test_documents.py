"""Code in the documents runs as it is written."""

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
