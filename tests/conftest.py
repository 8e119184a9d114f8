"""Shared pieces: a tiny random CLIP and a tiny stream of generated images."""

import functools
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cl_clipfit.cli.app import main
from cl_clipfit.clip import CLIPClassifier
from cl_clipfit.commands import summary
from cl_clipfit.data.source import Source
from cl_clipfit.heads import stacking
from cl_clipfit.heads.projection import random_projection
from cl_clipfit.methods import closed_form
from cl_clipfit.report import figures
from cl_clipfit.report import landscape as landscapes
from cl_clipfit.report.html import thumbnails
from tests.support import quick
from tests.support.kills import stop_in_step
from tests.support.tiny import (
    PLOT_CHANGES,
    PLOT_COMPARISON,
    PLOT_RUN,
    SAVE_FIGURE,
    SAVE_THUMBNAILS,
    WRITE_REPORT,
    build_source,
    build_tiny,
)


def pytest_xdist_auto_num_workers() -> int:
    """Return one worker more than cores: many tests wait for the processes that they start."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture
def tiny() -> Callable[..., CLIPClassifier]:
    return build_tiny


@pytest.fixture
def source() -> Source:
    return build_source()


@pytest.fixture(scope="session", autouse=True)
def _quick_commands() -> Iterator[None]:
    """Leave out of each command what takes most of its time and what few tests look at."""
    with pytest.MonkeyPatch.context() as patch:
        quick.shorten(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def _few_random_features() -> Iterator[None]:
    """Let heads have at most 40 random features: matrices of thousands take seconds."""

    def few(dim: int, width: int, seed: int) -> torch.Tensor:
        return random_projection(dim, min(width, 40), seed)

    with pytest.MonkeyPatch.context() as patch:
        for module in (closed_form, stacking):
            patch.setattr(module, "random_projection", few)
        yield


@pytest.fixture(scope="session", autouse=True)
def _short_collections() -> None:
    """Leave what was imported out of every garbage collection of a run."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def drawn_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw figures as every command does."""
    for module in (figures, landscapes):
        monkeypatch.setattr(module, "save_figure", SAVE_FIGURE)
    monkeypatch.setattr(figures, "plot_run", PLOT_RUN)
    monkeypatch.setattr(figures, "plot_changes", PLOT_CHANGES)
    monkeypatch.setattr(figures, "plot_comparison", PLOT_COMPARISON)


@pytest.fixture
def written_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every command end with its report."""
    monkeypatch.setattr(summary, "write_report", WRITE_REPORT)
    monkeypatch.setattr(thumbnails, "save_thumbnails", SAVE_THUMBNAILS)


@pytest.fixture(scope="module", autouse=True)
def _one_thread_for_all_of_a_module() -> None:
    torch.set_num_threads(1)  # fixtures that tests share come before those of each


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep features and data sets of tests out of the user's cache."""
    monkeypatch.setenv("CL_CLIPFIT_DATA", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _started_as_run_py(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let messages name the commands of a checkout, not of pytest."""
    monkeypatch.setattr("sys.argv", ["run.py"])


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function: give a command that is refused; return the line that says why."""

    def attempt(*command: str | Path) -> str:
        capsys.readouterr()
        assert main([str(word) for word in command]) == 2
        *_, line = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    return attempt


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function: let SIGTERM come in the nth step from now on; 0: in none."""
    return functools.partial(stop_in_step, monkeypatch)
