"""The arrows of the house: which room may import which, and what must not be imported early."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cl_clipfit
from tests.support.imports import arrows, circles, floors, imported, room_files

# A room imports only rooms of the floors below its own: arrows never run up or sideways.
FLOORS = (
    ("cli",),
    ("commands",),
    ("sweep",),
    ("experiment", "report"),
    ("methods",),
    ("evaluation", "registry"),
    ("bank",),
    ("training",),
    ("clip", "data"),
    ("storage", "merging", "heads"),
    ("config", "runtime"),
    ("errors", "metrics", "_version"),
)
FLOOR = {room: number for number, rooms in enumerate(reversed(FLOORS), 1) for room in rooms}
LOOSE = {"__init__", "__main__", "_version", "errors", "registry"}
# What strategies/ and scenarios/ may import besides the names in `cl_clipfit.__all__`.
OPEN = ("data.fetch", "data.formats", "heads", "merging", "training.losses")
INSIDE = {"cl_clipfit", "strategies", "scenarios", "tests", "benchmarks"}
DRAWN = arrows()
FILES = sorted(Path("cl_clipfit").rglob("*.py"))


@pytest.mark.parametrize("room", sorted(DRAWN))
def test_a_room_imports_only_rooms_below(room: str) -> None:
    wrong = {other for other in DRAWN[room] if FLOOR[other] >= FLOOR[room]}
    assert not wrong, f"{room} imports {wrong}"


def test_there_is_no_circle_and_no_loose_module() -> None:
    assert circles(DRAWN) == []
    assert max(floors(DRAWN).values()) <= len(FLOORS)
    assert {file.stem for file in Path("cl_clipfit").glob("*.py")} <= LOOSE


def test_only_the_strategy_and_the_streams_touch_avalanche() -> None:
    users = {
        file.relative_to("cl_clipfit").as_posix()
        for _, file in room_files(Path())
        if any(module.split(".")[0] == "avalanche" for module in imported(file))
    }
    assert all(user.startswith("training/") or user == "data/streams.py" for user in users), users


def test_the_package_does_not_import_strategies_scenarios_or_tests() -> None:
    outside = ("strategies", "scenarios", "tests", "benchmarks")
    for file in FILES:
        for module in imported(file):
            assert not module.removeprefix("cl_clipfit.").startswith(outside), (file, module)


def private_imports(code: str) -> list[str]:
    """Return what a method or stream imports of the package besides what is open to it."""
    private = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            private += [a.name for a in node.names if a.name.split(".")[0] in INSIDE]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or "."
            if node.level or module.split(".")[0] in INSIDE - {"cl_clipfit"}:
                private.append(module)
            elif module == "cl_clipfit":
                private += [a.name for a in node.names if a.name not in cl_clipfit.__all__]
            elif module.startswith("cl_clipfit."):
                room = module.removeprefix("cl_clipfit.")
                if not any(room == name or room.startswith(f"{name}.") for name in OPEN):
                    private.append(module)
    return private


@pytest.mark.parametrize("folder", ["strategies", "scenarios"])
def test_methods_and_streams_import_the_public_api(folder: str) -> None:
    files = sorted(Path(folder).glob("*.py"))
    assert len(files) > 5
    for file in files:
        assert private_imports(file.read_text()) == [], file


@pytest.mark.parametrize(
    ("code", "private"),
    [
        ("from cl_clipfit import CLIPStrategy, merging", []),
        ("from cl_clipfit.data.formats.folders import plain_name", []),
        ("from cl_clipfit.training.losses import cosine_distance", []),
        ("import torch\nfrom pathlib import Path", []),
        ("from cl_clipfit import Source, errors", ["errors"]),
        ("from cl_clipfit.training.features import label_index", ["cl_clipfit.training.features"]),
        ("from cl_clipfit.data.formats_of_mine import a", ["cl_clipfit.data.formats_of_mine"]),
        ("def f():\n    import cl_clipfit.storage", ["cl_clipfit.storage"]),
        ("from strategies.full import Full", ["strategies.full"]),
        ("from .full import Full", ["full"]),
    ],
)
def test_what_counts_as_private(code: str, private: list[str]) -> None:
    assert private_imports(code) == private


def test_no_test_file_imports_another() -> None:
    for file in Path("tests").rglob("*.py"):
        for module in imported(file):
            assert not module.split(".")[-1].startswith("test_"), f"{file} imports {module}"


def test_benchmarks_do_not_import_tests() -> None:
    for file in Path("benchmarks").rglob("*.py"):
        assert not any(module.split(".")[0] == "tests" for module in imported(file)), file


def test_the_systems_it_runs_on_are_declared_and_no_code_is_for_another() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    systems = [c for c in project["classifiers"] if c.startswith("Operating System")]
    assert systems == ["Operating System :: POSIX :: Linux", "Operating System :: MacOS"]
    assert "Both need Linux or macOS" in Path("README.md").read_text()
    assert not [file for file in FILES if {"msvcrt", "winreg"} & imported(file)]
    assert not [file for file in FILES if '"win32"' in file.read_text()]


@pytest.mark.parametrize("arguments", [["--help"], ["list", "strategies"], ["list", "scenarios"]])
def test_questions_import_neither_torch_nor_avalanche(arguments: list[str]) -> None:
    code = (
        "import sys; from cl_clipfit.cli.app import main; main(sys.argv[1:]);"
        "print([m for m in ('torch', 'avalanche', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_installed_packages_are_those_of_the_checkout() -> None:
    import tomllib

    setuptools = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools"]
    rooms = {".".join(file.parent.parts) for file in Path("cl_clipfit").rglob("__init__.py")}
    assert set(setuptools["packages"]) == rooms | {"cl_clipfit.strategies", "cl_clipfit.scenarios"}


def test_counts_of_a_drawn_house(tmp_path: Path) -> None:
    package = tmp_path / "cl_clipfit"
    for name, imports in {"a": "b", "b": "a", "c": "a", "d": ""}.items():
        (package / name).mkdir(parents=True)
        text = f"from cl_clipfit.{imports}.x import y\n" if imports else ""
        (package / name / "x.py").write_text(text)
    drawn = arrows(tmp_path)
    assert drawn == {"a": {"b"}, "b": {"a"}, "c": {"a"}, "d": set()}
    assert circles(drawn) == [{"a", "b"}]
    assert floors(drawn) == {"a": 1, "b": 1, "c": 2, "d": 1}


def test_every_module_parses_and_says_what_it_is() -> None:
    for file in FILES:
        assert ast.get_docstring(ast.parse(file.read_text())), file


def test_no_two_methods_share_a_block_of_six_lines() -> None:
    blocks: dict[tuple[str, ...], str] = {}
    for file in sorted(Path("strategies").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        imports = {
            number
            for node in ast.parse(text).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        lines = [
            line.strip()
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip() and number not in imports
        ]
        for block in {tuple(lines[at : at + 6]) for at in range(len(lines) - 5)}:
            other = blocks.setdefault(block, file.name)
            assert other == file.name, f"{other} and {file.name} share: {' / '.join(block)}"


def test_no_class_and_no_function_grows_without_end() -> None:
    for file in [*FILES, *sorted(Path("strategies").glob("*.py"))]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                most = 60 if isinstance(node, ast.FunctionDef) else 300
                most += 50 * (node.name == "CLIPStrategy")
                assert lines <= most, f"{file}: {node.name} has {lines} lines"
