"""Every registered strategy and scenario, and plug-ins good and bad."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cl_clipfit import CLIPClassifier, DataRequest, Source, build_scenario
from cl_clipfit.cli.app import main
from cl_clipfit.errors import UserError
from cl_clipfit.experiment.scenario_file import load_source
from cl_clipfit.registry import Registry, describe
from cl_clipfit.strategies.clipfit import ClipFit, ClipFitOptions
from cl_clipfit.strategies.mergetune import MergeTune, MergeTuneOptions
from tests.support.tiny import TINY

REGISTRY = Registry([Path("examples/image_norms.py")])
SCENARIOS = [entry.name for entry in REGISTRY.entries("scenarios")]


@pytest.mark.parametrize("kind", ["strategies", "scenarios"])
def test_entries_describe_themselves(kind: str) -> None:
    wanted = {
        "strategies": ("GROUP", "PAPER", "NEEDS"),
        "scenarios": ("CLASSES", "TASKS", "IMAGES", "DOWNLOAD", "LICENCE"),
    }[kind]
    for entry in Registry().entries(kind):
        assert not entry.error
        assert 10 < len(entry.summary) <= 100, entry.name
        assert all(entry.about.get(key) for key in wanted), entry.name
        assert entry.name == entry.file.stem.replace("_", "-")


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_is_what_it_says_and_the_same_every_time(name: str) -> None:
    entry = REGISTRY.get("scenarios", name)
    if entry.about["DOWNLOAD"] != "none":
        pytest.skip("needs a download; see test_downloads.py")
    before = torch.get_rng_state()
    source = load_source(entry, entry.options_class()(), DataRequest())
    # Fewer images of a class are the first ones: drawing all again takes seconds.
    sizes = {"train_images", "test_images"} & set(entry.options_class().model_fields)
    again = load_source(entry, entry.options_class()(**dict.fromkeys(sizes, 3)), DataRequest())
    assert torch.equal(before, torch.get_rng_state())
    for one, other in ((source.train, again.train), (source.test, again.test)):
        assert len(one) == len(other) or (sizes and len(other) == 3 * len(source.class_names))
        assert torch.equal(one.images[: len(other)], other.images)
        assert torch.equal(one.labels[: len(other)], other.labels)
    assert len(source.class_names) == entry.about["CLASSES"]
    assert entry.about["IMAGES"] == f"{len(source.train):,} + {len(source.test):,}"
    scenario = build_scenario(name, source, tasks=entry.about["TASKS"])
    assert len({len(classes) for classes in scenario.task_classes}) == 1
    train_images = {image.numpy().tobytes() for image in source.train.images}
    assert not any(image.numpy().tobytes() in train_images for image in source.test.images)


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_the_plugin_of_the_readme_is_the_example_and_is_short() -> None:
    example = Path("examples/image_norms.py").read_text()
    blocks = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    assert example in blocks
    assert len(example.splitlines()) <= 25


def test_a_plugin_is_found_by_its_file_name_or_its_own_name(tmp_path: Path) -> None:
    bare = write(tmp_path, "my_method.py", "'''Mine.'''\nimport nothing_here\n")
    named = write(tmp_path, "x.py", "NAME = 'other'\nPAPER = 'p'\nclass X: ...\n")
    stream = write(tmp_path, "my_stream.py", "def load(options, request): ...\n")
    registry = Registry([bare, named, stream])
    assert registry.get("strategies", "my-method").summary == "Mine."
    assert registry.get("strategies", "other").about == {"PAPER": "p"}
    assert registry.get("scenarios", "my-stream").file == stream


def test_an_edit_within_the_same_second_is_not_missed(tmp_path: Path) -> None:
    for value in (1, 2):
        file = write(tmp_path, "quick.py", f"VALUE = {value}\nvalue = {value}\n")
        os.utime(file, (1e9, 1e9))
        entry = Registry([file]).get("strategies", "quick")
        assert entry.about["VALUE"] == entry.load().value == value
    file.write_text("value = 3\n")
    changed = describe(file)
    file.write_text("value = 4\n")
    with pytest.raises(UserError, match="was changed"):
        changed.load()


def test_annotated_names_and_helpers_called_load_do_not_confuse(tmp_path: Path) -> None:
    text = "NAME: str = 'nice'\ndef load(): ...\nclass X(CLIPStrategy): ...\n"
    file = write(tmp_path, "x.py", text)
    assert Registry([file]).get("strategies", "nice").file == file


def test_a_plugin_that_fails_to_import_is_named(tmp_path: Path) -> None:
    broken = write(tmp_path, "broken.py", "import nothing_here\n")
    registry = Registry([broken])
    with pytest.raises(UserError, match=r"broken\.py fails to import: ModuleNotFoundError"):
        registry.strategy_class("broken")
    assert registry.strategy_class("zero-shot").__name__ == "ZeroShot"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Nothing: ...\n", "no subclass of CLIPStrategy"),
        (
            "from cl_clipfit import CLIPStrategy\n"
            "class A(CLIPStrategy): ...\nclass B(CLIPStrategy): ...\n",
            "found A, B",
        ),
        ("def broken(:\n", "cannot be read: line 1"),
    ],
)
def test_files_that_are_no_strategy_are_explained(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, "odd.py", text)
    with pytest.raises(UserError, match=message):
        Registry([file]).strategy_class("odd")


@pytest.mark.parametrize(
    "text",
    [
        "A = {[]: 1}", f"A = {'-' * 5000}1", f"A = {'-' * 2000}1", f"A = {'+'.join('1' * 5000)}",
        f"IMAGES = PAPER = 0x{'f' * 5000}", f"PAPER = [0x{'f' * 5000}]",
        f"NAME = 0x{'f' * 5000}", f"class A({'-' * 5000}1): ...", f"class A({'-' * 1500}1): ...",
        f"A = {'(' * 5000}", "A = 'x", "A = b'\\x'",
    ],
    ids=range(12),
)  # fmt: skip
def test_literals_that_cannot_be_shown_are_left_out(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, "odd_one.py", f"{text}\nNEEDS = 'nothing'\n")
    entry = describe(file)
    assert set(entry.about) <= {"NEEDS"}
    assert (entry.error == "") == ("NEEDS" in entry.about)
    assert main(["list", "strategies", "odd-one", "--plugin", str(file)]) == 0
    assert "odd-one" in capsys.readouterr().out


SUBCLASS = """
from cl_clipfit.strategies.clipfit import ClipFit

class Mine(ClipFit):
    pass
"""
WITH_OPTIONS = """
from cl_clipfit import CLIPStrategy, Options, Source

class Base(Options):
    depth: int = 1

class Other(Base):
    width: int = 2
"""


def test_a_plugin_that_subclasses_a_built_in_method_has_its_options(
    tmp_path: Path, tiny: Callable[..., CLIPClassifier], source: Source
) -> None:
    file = write(tmp_path, "mine.py", SUBCLASS)
    cls = Registry([file]).strategy_class("mine")
    assert cls.__name__ == "Mine"
    assert cls(model=tiny(), class_names=source.class_names).options == ClipFitOptions()
    for number, label in enumerate(("mine", "mergetune:host=mine")):
        output = tmp_path / str(number)
        command = [*TINY, "--plugin", str(file), "--limit", "5", "--output", str(output)]
        assert main([*command, "--strategy", label, "--set", "mine.kd_weight=3"]) == 0
        (result,) = output.glob("*/result.json")
        recorded = json.loads(result.read_text())
        options = recorded["host"]["options"] if number else recorded["options"]
        assert options == ClipFitOptions(kd_weight=3).model_dump(mode="json")


def test_a_continued_method_takes_the_options_of_its_host_by_default(
    tiny: Callable[..., CLIPClassifier], source: Source
) -> None:
    made = MergeTune.over(ClipFit)(model=tiny(), class_names=source.class_names)
    assert made.options == ClipFitOptions()
    assert made.merge == MergeTuneOptions()


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("class Mine(CLIPStrategy):\n    options_class = Other\n", ["depth", "width"]),
        ("class Mine(CLIPStrategy): ...\n", []),
        ("def load(options: Base, request): ...\n", ["depth"]),
        ("def load(options: 'Other', request) -> Source: ...\n", ["depth", "width"]),
        ("def load(options, request): ...\n", []),
    ],
)
def test_the_options_of_a_file_are_those_it_says(
    tmp_path: Path, text: str, fields: list[str]
) -> None:
    entry = describe(write(tmp_path, f"said_{len(text)}.py", WITH_OPTIONS + text))
    assert list(entry.options_class().model_fields) == fields


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "zero_shot.py", "class X: ...\n")
    with pytest.raises(UserError, match="both define"):
        Registry([file])


def test_installed_packages_add_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "their_methods"
    package.mkdir()
    write(package, "__init__.py", "")
    write(package, "gentle.py", "'''Gentle.'''\nfrom cl_clipfit import CLIPStrategy\n"
          "class Gentle(CLIPStrategy):\n    learning = 'none'\n")  # fmt: skip
    info = tmp_path / "their_methods-1.0.dist-info"
    info.mkdir()
    write(info, "METADATA", "Metadata-Version: 2.1\nName: their-methods\nVersion: 1.0\n")
    points = [
        "[cl_clipfit.strategies]",
        "gentle = their_methods.gentle",
        "lost = their_methods.lost",
    ]
    write(info, "entry_points.txt", "\n".join(points))
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry()
    assert registry.get("strategies", "gentle").summary == "Gentle."
    assert registry.strategy_class("gentle").__name__ == "Gentle"
    with pytest.raises(UserError, match="not installed"):
        registry.get("strategies", "lost")


def test_describing_runs_no_code(tmp_path: Path) -> None:
    file = write(tmp_path, "danger.py", "raise SystemExit('ran')\n")
    assert describe(file).name == "danger"


def test_folders_of_the_same_names_hide_no_method_or_stream(tmp_path: Path) -> None:
    """`python -m cl_clipfit` puts the working directory first on the path."""
    for kind in ("strategies", "scenarios"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "__init__.py").write_text("raise ImportError('not this one')\n")
    code = (
        "from cl_clipfit.registry import Registry; r = Registry();"
        "print(*(e.name for k in ('strategies', 'scenarios') for e in r.entries(k)));"
        "print(r.strategy_class('clipfit').__module__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    names, module = done.stdout.splitlines()
    assert {"clipfit", "mergetune", "split-digits", "mtil"} <= set(names.split())
    assert module == "cl_clipfit.strategies.clipfit"


@pytest.mark.parametrize(("name", "shown"), [("replay", "200"), ("rail", "no"), ("joint", "all")])
def test_info_says_what_is_used_of_old_images(
    name: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", name]) == 0
    (line,) = [t for t in capsys.readouterr().out.splitlines() if t.startswith("  exemplars: ")]
    assert line.removeprefix("  exemplars: ").split(",")[0] == shown
