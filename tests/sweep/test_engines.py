"""Twelve runs on each engine: equal to those of one process, whatever dies on the way."""

from pathlib import Path

import pytest

from cl_clipfit.cli.app import main
from cl_clipfit.report.results import load_results
from tests.support.sweeps import bits, interrupt, run_in_this_process, write_sweep


def compare(folder: Path) -> None:
    """Check that every run of the sweep is bit for bit that of one process."""
    swept = {result.path.name: bits(result) for result in load_results(folder / "runs")}
    alone = {result.path.name: bits(result) for result in run_in_this_process(folder)}
    assert len(alone) == 12 and swept == alone


def test_local_workers_die_and_stop_and_the_sweep_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, plugin = write_sweep(tmp_path)
    interrupt(tmp_path, 0, "itself")
    interrupt(tmp_path, 2, "parent")
    command = ["sweep", str(file), "--output", str(tmp_path / "runs"), "--plugin", str(plugin)]
    command += ["--workers", "1", "--threads", "1"]
    assert main(command) == 143  # what runs is completed to its next checkpoint, then it ends
    output = capsys.readouterr().err
    assert "1/12 features fragile seed 0: failed: its worker process died" in output
    assert "2/12 features fragile seed 1: average accuracy" in output
    assert "stopped by SIGTERM: the same command resumes the sweep" in output

    assert main(command) == 0
    output = capsys.readouterr()
    assert "12/12" in output.err and "fragile seed 1" not in output.err
    assert "12 of 12 runs are finished" in output.out and "mean of 3 seeds" in output.out
    compare(tmp_path)

    assert main(command) == 0
    again = capsys.readouterr()
    assert again.err == "" and again.out == output.out
