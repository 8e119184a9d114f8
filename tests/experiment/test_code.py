"""Code that changes numbers changes the run, or a warning says that it has changed."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cl_clipfit import registry
from cl_clipfit.cli.app import main
from cl_clipfit.experiment import identity, run
from cl_clipfit.registry import describe
from cl_clipfit.runtime import code_files
from cl_clipfit.training import journal
from tests.support.tiny import PLUGIN, TINY

JOB = [*TINY, "--epochs", "2", "--batch-size", "5", "--strategy", "image-norms", "--output"]
# Of each file of a plug-in: what it holds, and what it is changed to.
FILES = {
    "helper": {"helper_a.py": ("SCALE = 1", "SCALE = 2")},
    "helper of a helper": {
        "helper_a.py": ("import helper_b", "import helper_b"),
        "helper_b.py": ("SCALE = 1", "SCALE = 2"),
    },
    "package": {
        "package_c/__init__.py": ("from . import part", "from . import part"),
        "package_c/part.py": ("SCALE = 1", "SCALE = 2"),
    },
    "data that is read": {"scale.json": ("1", "2")},
    "data that a helper reads": {
        "helper_a.py": ("open(__file__[:-11] + 'scale.txt').read()",) * 2,
        "scale.txt": ("1", "2"),
    },
}
PLUGINS = {
    "helper": "import helper_a",
    "helper of a helper": "from helper_a import helper_b as b",
    "package": "from package_c.part import SCALE",
    "data that is read": "open(__file__.replace('plugin.py', 'scale.json')).read()",
    "data that a helper reads": "import numpy, json, helper_a",
}


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Return a function that forgets what was imported, as a new process would have."""

    def forget() -> None:
        registry._USES.clear()
        for name in [*sys.modules]:
            if name.startswith(("helper_", "package_c", "cl_clipfit_plugin_")):
                del sys.modules[name]

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    forget()
    yield forget
    forget()


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("end", ["", "def load(options, request): ..."], ids=["method", "stream"])
def test_what_a_plugin_uses_is_part_of_its_code(
    kind: str, end: str, tmp_path: Path, process: Any
) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(f'"""Mine."""\n{PLUGINS[kind]}\n{end}\n')
    hashes = []
    for version in (0, 1, 0):
        for name, contents in FILES[kind].items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(contents[version])
        process()
        entry = describe(plugin)
        entry.load()
        assert {*entry.uses} == {*FILES[kind]}
        hashes.append(entry.code_hash)
    assert hashes[0] == hashes[2] != hashes[1]


def test_libraries_and_unused_files_are_not_part_of_it(tmp_path: Path, process: Any) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text("import json, numpy, torch\nfrom cl_clipfit import CLIPStrategy\n")
    (tmp_path / "helper_a.py").write_text("SCALE = 1")
    entry = describe(plugin)
    entry.load()
    assert (entry.uses, entry.code_hash) == ({}, entry.sha256)


def test_a_folder_whose_name_begins_like_that_of_a_library_is_none(
    tmp_path: Path, process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_files, "_LIBRARIES", {tmp_path / "lib"})
    for folder in ("lib", "lib_mine"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"helper_{folder}.py").write_text("SCALE = 1")
        monkeypatch.syspath_prepend(tmp_path / folder)
    plugin = tmp_path / "plugin.py"
    plugin.write_text("import helper_lib, helper_lib_mine")
    entry = describe(plugin)
    entry.load()
    assert {*entry.uses} == {"helper_lib_mine.py"}


def test_a_process_keeps_the_code_that_it_imported(tmp_path: Path, process: Any) -> None:
    plugin, helper = tmp_path / "plugin.py", tmp_path / "helper_a.py"
    plugin.write_text("import helper_a")
    helper.write_text("SCALE = 1")
    first, second = describe(plugin), describe(plugin)
    first.load()
    helper.write_text("SCALE = 2")
    second.load()
    assert first.code_hash == second.code_hash


@pytest.fixture
def other_code(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that changes the code of the package."""

    def change() -> None:
        for module in (identity, run, journal):
            monkeypatch.setattr(module, "package_hash", lambda: "0" * 64)

    return change


def result(output: Path) -> dict[str, Any]:
    (file,) = output.glob("*/result.json")
    return json.loads(file.read_text())


def test_a_warning_says_that_the_package_has_changed(
    tmp_path: Path, other_code: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*JOB, str(tmp_path)]) == 0
    (folder,) = tmp_path.glob("*/result.json")
    commands = [
        [*JOB, str(tmp_path)],
        ["bank", "eval", str(folder.parent), "--mode", "mean", "--plugin", *PLUGIN[1:]],
    ]
    for changed in (False, True):
        for command in commands:
            capsys.readouterr()
            assert main(command) == 0, capsys.readouterr().err
            assert ("by other code of cl_clipfit" in capsys.readouterr().err) == changed
        other_code()


@pytest.mark.parametrize("changed", [False, True])
def test_a_resumed_run_keeps_the_warning(
    changed: bool, tmp_path: Path, other_code: Any, stop_at: Any
) -> None:
    stop_at(8)
    assert main([*JOB, str(tmp_path)]) == 143
    stop_at(0)
    if changed:
        other_code()
    assert main([*JOB, str(tmp_path)]) == 0
    said = [text for text in result(tmp_path)["warnings"] if "code of cl_clipfit" in text]
    assert len(said) == changed
