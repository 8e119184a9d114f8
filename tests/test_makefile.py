"""What `make` does to a checkout."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_clean_removes_what_was_built_and_keeps_the_results(tmp_path: Path) -> None:
    shutil.copy("Makefile", tmp_path)
    result = tmp_path / "runs/split-digits-clipfit-s0-01234567/result.json"
    built = tmp_path / ".venv/bin/python"
    for file in (result, built):
        file.parent.mkdir(parents=True)
        file.touch()
    # `make test VENV=...` hands VENV down, and this make would delete the tests' environment.
    command = ["make", "-C", str(tmp_path), "VENV=.venv", "clean"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    subprocess.run(command, check=True, capture_output=True, env=env)
    assert result.exists()
    assert not (tmp_path / ".venv").exists()
