"""The arrows of the house: who may import whom, and what must not be imported early."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

LEAVES = ("clip", "metrics", "data", "tuning", "losses", "merging")
COMMON = {"errors", "config", "files", "lean_imports"}
FILES = sorted(Path("cl_clipfit").rglob("*.py"))


def imports(file: Path) -> set[str]:
    """Return all modules a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_packages_do_not_import_each_other(leaf: str) -> None:
    for file in sorted(Path("cl_clipfit", leaf).rglob("*.py")):
        for module in imports(file):
            parts = module.split(".")
            if parts[0] == "cl_clipfit" and len(parts) > 1:
                assert parts[1] in {leaf, *COMMON}, f"{file} imports {module}"


def test_only_two_files_touch_avalanche() -> None:
    users = {
        file.as_posix() for file in FILES if any(m.startswith("avalanche") for m in imports(file))
    }
    assert users == {"cl_clipfit/strategy.py", "cl_clipfit/data/streams.py"}


def test_the_package_does_not_import_strategies_or_scenarios() -> None:
    for file in FILES:
        heads = {module.split(".")[0] for module in imports(file)}
        assert not heads & {"strategies", "scenarios", "tests"}, file


def test_methods_and_streams_use_the_public_package() -> None:
    for file in [*Path("strategies").glob("*.py"), *Path("scenarios").glob("*.py")]:
        for module in imports(file):
            assert not module.startswith(("strategies", "scenarios", "avalanche")), file


def test_the_systems_it_runs_on_are_declared_and_no_code_is_for_another() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    systems = [c for c in project["classifiers"] if c.startswith("Operating System")]
    assert systems == ["Operating System :: POSIX :: Linux", "Operating System :: MacOS"]
    assert "Both need Linux or macOS" in Path("README.md").read_text()
    assert not [file for file in FILES if {"msvcrt", "winreg"} & imports(file)]
    assert not [file for file in FILES if '"win32"' in file.read_text()]


@pytest.mark.parametrize("arguments", [["--help"], ["list", "strategies"], ["list", "scenarios"]])
def test_questions_import_neither_torch_nor_avalanche(arguments: list[str]) -> None:
    code = (
        "import sys; from cl_clipfit.cli import main; main(sys.argv[1:]);"
        "print([m for m in ('torch', 'avalanche', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
