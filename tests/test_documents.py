"""Code in the documents runs as it is written, and every command in them is one."""

import contextlib
import doctest
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from cl_clipfit import RunConfig, run
from cl_clipfit.cli.app import app, main
from cl_clipfit.cli.habits import meet_habits
from cl_clipfit.cli.mistakes import commands
from cl_clipfit.config.command import read_config
from cl_clipfit.experiment.names import check_names

ROOT = Path.cwd()
_WRITTEN = ROOT / "docs/reference"  # by the build of the site
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"))
    if _WRITTEN not in page.parents
)
# Blocks that another test runs: of strategies and of metrics, as the files they are, and of
# Avalanche's users.
_ELSEWHERE = ("class ImageNorms", "def metric(rows", "ReplayPlugin", "def load(")
_CODE = {"", "bash", "python", "pycon"}  # what is run or parsed; the others are data
_KINDS = {*_CODE, "yaml", "json", "toml", "latex", "text", "{include}", "{toctree}"}


def blocks(page: str, kind: str | None = None) -> list[str]:
    """Return the code blocks of a page, or those of one language."""
    found = re.findall(r"^```(\S*).*?\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.M)
    assert {name for name, _ in found} <= _KINDS, page
    return [text for name, text in found if kind in (None, name)]


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    with contextlib.chdir(folder):
        yield


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the pages name: runs, a folder of images, files."""
    folder = tmp_path_factory.mktemp("desk")
    draw = np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("cat", "dog", "crane")):
            (folder / "PATH" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 80, (32, 32, 3), dtype=np.uint8) + 60 * label
                file = folder / "PATH" / part / name / f"{number}.jpg"
                Image.fromarray(pixels.astype(np.uint8)).save(file)
    shutil.copy(folder / "PATH/test/cat/0.jpg", folder / "photo.jpg")
    for name in ("FILE", "FILE.npz"):
        (folder / name).touch()
    for name in ("docs", "examples", "Makefile", ".ci"):
        (folder / name).symlink_to(ROOT / name)
    (page,) = [b for b in blocks("docs/streams/own-data.md", "python") if "def load(" in b]
    (folder / "my_stream.py").write_text(page)
    (folder / "sweep.yaml").write_text(blocks("docs/sweep.md", "yaml")[0])
    quick = RunConfig(
        strategy=["clipfit"], tasks=2, epochs=1, limit=6, probe=[], output=folder / "runs"
    )
    (result,) = run(quick)
    shutil.move(result.path, folder / "runs/RUN")
    shutil.copytree(folder / "runs/RUN", folder / "RUN")
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_the_python_blocks_of_a_page_run_as_written(
    page: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other, with the names of those before."""
    names: dict[str, object] = {}
    with inside(desk):
        for block in blocks(page, "python"):
            if not any(mark in block for mark in _ELSEWHERE):
                exec(block, names)
        if page == "README.md":
            assert "| clipfit" in capsys.readouterr().out
            assert Path("curves.png").stat().st_size > 0
            assert names["table"].shape == (6, 5)  # type: ignore[attr-defined]
            default = matplotlib.rcParamsDefault["font.size"]
            assert matplotlib.rcParams["font.size"] == default
        if page.endswith("own-data.md"):
            assert main(["--scenario", "features", "--data-dir", "features.npz", "--dry-run"]) == 0


def command_lines(page: str) -> list[str]:
    """Return the commands of the blocks without a language; all of their lines are such."""
    shell = [*blocks(page, ""), *blocks(page, "bash")]
    lines = [part.strip() for block in shell for part in re.split(r"\n|&&", block)]
    return [line for line in lines if line and not line.startswith("#")]


def check_command(line: str) -> None:
    """Parse a command as the shell and the command line do, up to what needs PyTorch."""
    words = [word for word in shlex.split(line, comments=True) if word != "..."]
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", Path("Makefile").read_text(), re.M), line
        return
    if words[0] == ".ci/run":
        assert os.access(".ci/run", os.X_OK)
        return
    if "pip" in words:
        assert words[words.index("pip") + 1] == "install", line
        return
    assert "run.py" in words[: 2 if "torchrun" not in words[0] else None], line
    words = words[words.index("run.py") + 1 :]
    words = meet_habits(words[: words.index(">")] if ">" in words else words)
    if words in (["--help"], ["--help-all"]):
        return
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    if not words or words[0] not in [*commands(app), "--install-completion"]:
        config = bound.arguments.get("config") or RunConfig()
        given = read_config(config.config) if config.config else {}
        check_names(RunConfig(**{**given, **config.model_dump(exclude_unset=True)}))


@pytest.mark.parametrize("page", [page for page in PAGES if command_lines(page)])
def test_every_command_of_a_page_is_understood(page: str, desk: Path) -> None:
    with inside(desk):
        for line in command_lines(page):
            try:
                check_command(line)
            except Exception as error:
                raise AssertionError(f"{page}: {line}: {error}") from error


def test_a_command_that_is_wrong_would_be_noticed(desk: Path) -> None:
    wrong = (
        "run.py --scenario split-digit", "run.py --strategy clipfit:kd=1,x=2", "run.py --epoch 2",
        "run.py predict", "run.py --data-dir NOWHERE --scenario folder", "make dem", "python x.py",
    )  # fmt: skip
    with inside(desk):
        for line in wrong:
            with pytest.raises(Exception, match=r"\w"):
                check_command(line)
        check_command("python run.py predict RUN photo.jpg --top 3 > x.csv  # a comment")


def test_the_stream_of_the_page_on_own_data_is_one(desk: Path) -> None:
    with inside(desk):
        words = "--scenario my-stream --plugin my_stream.py --data-dir PATH --model mini --dry-run"
        assert main(words.split()) == 0


def test_the_worked_example_of_the_metrics_is_computed_as_written() -> None:
    (block,) = blocks("docs/metrics.md", "pycon")
    example = doctest.DocTestParser().get_doctest(block, {}, "metrics.md", None, None)
    assert doctest.DocTestRunner().run(example) == (0, 10)


def test_every_relative_link_leads_to_a_file() -> None:
    links = {
        (page, target.partition("#")[0])
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text())
        if not re.match(r"[a-z]+:|#", target)
    }
    assert len(links) > 50
    missing = [link for link in links if not ((ROOT / link[0]).parent / link[1]).exists()]
    assert not missing
