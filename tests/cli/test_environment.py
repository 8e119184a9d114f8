"""What the environment of a user holds, or lacks, ends no command in a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cl_clipfit.data.fetch.download import cache_folder
from cl_clipfit.errors import UserError
from cl_clipfit.evaluation.feature_cache import FeatureCache
from tests.support.tiny import TINY

ROOT = Path(__file__).resolve().parents[2]
NOBODY = "import pwd\ndef unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\n"
PREPARE = """
import sys
from cl_clipfit.runtime.lean_imports import lean_imports
with lean_imports():
    pass
settings = sys.modules["avalanche.benchmarks.datasets.dataset_utils"]
print(settings.default_dataset_location("cub"))
"""
MATPLOTLIB = """
import os
from cl_clipfit.report import figures
import matplotlib
print(os.environ["MPLBACKEND"], matplotlib.get_backend(auto_select=False))
"""


def python(code: str, folder: Path, **environment: str) -> str:
    """Run code in a folder; return the last line that it prints."""
    inherited = {n: v for n, v in os.environ.items() if n not in ("HOME", "CL_CLIPFIT_DATA")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=folder, capture_output=True, text=True,
        env={**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("kind", ["a file", "below a file", "settings cut short"])
def test_avalanche_needs_no_home_that_can_be_written(kind: str, tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    if kind == "settings cut short":  # as a process finds them that another one is writing
        (home / ".avalanche").mkdir(parents=True)
        (home / ".avalanche" / "config.json").touch()
    else:
        home.touch()
        home = home / "deeper" if kind == "below a file" else home
    assert python(PREPARE, work, HOME=str(home)) == f"{home}/.avalanche/data/cub"
    assert not [*work.iterdir()]


def test_without_a_home_no_folder_is_called_after_it(tmp_path: Path) -> None:
    assert python(NOBODY + PREPARE, tmp_path) == "~/.avalanche/data/cub"
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "given", [{}, {"XDG_CACHE_HOME": "~/x"}, {"CL_CLIPFIT_DATA": "~nobody1/x"}]
)
def test_without_a_home_features_are_not_kept_and_data_sets_need_a_folder(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "CL_CLIPFIT_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    def unknown(_: object) -> None:
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(UserError, match="set CL_CLIPFIT_DATA"):
        cache_folder()
    assert FeatureCache().get({}, 1) is None


@pytest.mark.parametrize(
    "backend", ["module://matplotlib_inline.backend_inline", "module://ipympl.backend_nbagg", "no"]
)
def test_figures_need_no_backend_and_the_variable_stays(backend: str, tmp_path: Path) -> None:
    """Of a backend that Matplotlib lacks nothing comes; "svg" is still chosen."""
    assert python(MATPLOTLIB, tmp_path, MPLBACKEND=backend).split()[0] == backend


def test_a_backend_that_is_installed_is_still_chosen(tmp_path: Path) -> None:
    assert python(MATPLOTLIB, tmp_path, MPLBACKEND="svg") == "svg svg"


def test_a_run_needs_neither_a_home_nor_a_backend(tmp_path: Path) -> None:
    tiny = [str(ROOT / word) if word.endswith(".py") else word for word in TINY]
    command = [*tiny, "--strategy", "zero-shot", "--output", str(tmp_path / "runs")]
    code = f"{NOBODY}from cl_clipfit.cli.app import main\nassert main({command}) == 0\n"
    backend = "module://ipykernel.pylab.backend_inline"
    line = python(code, tmp_path, MPLBACKEND=backend)
    (run,) = tmp_path.glob("runs/*/")
    assert line == f"report: {run}/report.html"
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
