"""Shared pieces: a tiny random CLIP and a tiny stream of generated images."""

import functools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from matplotlib.figure import Figure
from open_clip.transform import PreprocessCfg

from cl_clipfit.cli import main
from cl_clipfit.clip import CLIPClassifier
from cl_clipfit.data.source import ImageSet, Source
from cl_clipfit.files import write_atomic
from cl_clipfit.report import figures, landscapes
from cl_clipfit.strategy import CLIPStrategy

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


# Options of a quick command, and plug-ins to write to a file.
PLUGIN = ["--plugin", "examples/image_norms.py", "tests/plugins/tiny_stream.py"]
TINY = ["--scenario", "tiny-stream", *PLUGIN]
FROZEN = [*TINY, "--strategy", "zero-shot"]
TRAINED = [*TINY, "--strategy", "image-norms"]
MINE = "from cl_clipfit import CLIPStrategy\nclass Mine(CLIPStrategy):\n"
SAVE_FIGURE = figures.save_figure
STREAM = """
import torch
from cl_clipfit import ImageSet, Source
MODEL = "mini"
PROBES = ()
def load(options, request):
    images = torch.full((4, 3, 8, 8), {level}, dtype=torch.uint8)
    data = ImageSet(images, torch.tensor([0, 0, 1, 1]))
    return Source(("a", "b"), ("{{}}",), data, data)
"""


@functools.cache
def tokenizer() -> open_clip.SimpleTokenizer:
    """Return the tokenizer of all tiny models: to make one takes longer than a model."""
    return open_clip.SimpleTokenizer(context_length=12)


def build_tiny(seed: int = 0) -> CLIPClassifier:
    """Return a random CLIP of about 30,000 parameters besides its token table."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = open_clip.CLIP(**TINY_CLIP)
    open_clip.set_model_preprocess_cfg(clip, {**PreprocessCfg().__dict__, "size": 16})
    return CLIPClassifier(clip, tokenizer())


def build_source(classes: int = 6, per_class: int = 8, seed: int = 0) -> Source:
    """Return images whose colour tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(per_class)
    colours = torch.randint(0, 256, (classes, 3, 1, 1), generator=generator)
    noise = torch.randint(-20, 20, (len(labels), 3, 16, 16), generator=generator)
    images = (colours[labels] + noise).clamp(0, 255).to(torch.uint8)
    data = ImageSet(images, labels)
    names = tuple(f"colour {label}" for label in range(classes))
    return Source(names, ("a photo of a {}.",), data, data)


@pytest.fixture
def tiny() -> Callable[..., CLIPClassifier]:
    return build_tiny


@pytest.fixture
def source() -> Source:
    return build_source()


@pytest.fixture(scope="session", autouse=True)
def _quick_figures() -> Iterator[None]:
    """Let figures be a line of text: to draw takes longer than to train the tiny model."""

    def write(figure: Figure, path: Path) -> None:
        for kind in ("png", "svg"):
            write_atomic(path.with_name(f"{path.name}.{kind}"), f"{len(figure.axes)} panels\n")

    with pytest.MonkeyPatch.context() as patch:
        for module in (figures, landscapes):
            patch.setattr(module, "save_figure", write)
        yield


@pytest.fixture
def drawn_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw figures as every command does."""
    for module in (figures, landscapes):
        monkeypatch.setattr(module, "save_figure", SAVE_FIGURE)


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
    update = CLIPStrategy._before_update

    def arm(number: int) -> None:
        calls = [0]

        def counted(self: CLIPStrategy, **kwargs: Any) -> None:
            calls[0] += 1
            if calls[0] == number:
                signal.raise_signal(signal.SIGTERM)
            update(self, **kwargs)

        monkeypatch.setattr(CLIPStrategy, "_before_update", counted)

    return arm
