"""A run is told from others by its whole digest, not by the digits in its folder's name."""

import json
from pathlib import Path
from typing import Any

import pytest

from cl_clipfit.cli.app import main
from tests.support.tiny import FROZEN, PLUGIN, TRAINED


def edit(run: Path, digest: str) -> None:
    """Change the digest that a result holds."""
    result: dict[str, Any] = json.loads((run / "result.json").read_text())
    result["digest"] = digest
    (run / "result.json").write_text(json.dumps(result))


def digest_of(run: Path) -> str:
    return str(json.loads((run / "result.json").read_text())["digest"])


def test_a_finished_run_is_recognised_by_its_whole_digest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*FROZEN, "--tasks", "2", "--output", str(tmp_path)]
    assert main(command) == 0
    (run,) = tmp_path.glob("*-s0-*")
    digest = digest_of(run)
    assert len(digest) == 64
    assert run.name.endswith(f"-s0-{digest[:8]}")
    assert main(command) == 0
    assert "complete, shown again" in capsys.readouterr().err

    edit(run, digest[:8])  # as older versions wrote it
    assert main(command) == 0
    assert "complete, shown again" in capsys.readouterr().err

    edit(run, digest[:8] + "0" * 56)
    written = (run / "result.json").read_bytes()
    assert main(command) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {run} holds a run with other settings")
    assert line.endswith("choose another folder with --output")
    assert (run / "result.json").read_bytes() == written

    edit(run, "0" * 8)  # of a forced run of an older version
    assert main(command) == 2
    assert "repeat the run with --fresh" in capsys.readouterr().err


def test_a_run_that_is_opened_again_has_its_digest_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TRAINED, "--tasks", "2", "--quiet", "--output", str(tmp_path)]) == 0
    (run,) = tmp_path.glob("*-s0-*")
    command, digest = ["bank", "eval", str(run), "--mode", "mean", *PLUGIN], digest_of(run)
    for kept, code in ((digest[:8], 0), (digest[:8] + "0" * 56, 2)):
        edit(run, kept)
        assert main(command) == code
    assert "are not those that the run was made with" in capsys.readouterr().err
