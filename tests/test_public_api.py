"""The public names of the package: one table, seen alike by users, shells and type checkers."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import cl_clipfit

HOMES: dict[str, str] = vars(cl_clipfit)["_HOMES"]


def checked_names() -> dict[str, str]:
    """Return what the block for type checkers imports, by name: where from."""
    names = {}
    for node in ast.parse(Path(cl_clipfit.__file__).read_text()).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                assert isinstance(line, ast.ImportFrom)
                names |= {str(alias.asname): f"{line.module}:{alias.name}" for alias in line.names}
    return names


def test_type_checkers_see_the_names_of_the_table() -> None:
    expected = {}
    for name, home in HOMES.items():
        room, _, last = home.rpartition(".")
        expected[name] = f"{room}:{name}" if last == name else f"{home}:{name}"
    assert checked_names() == expected
    assert set(cl_clipfit.__all__) == {*HOMES, "__version__"}
    assert len(cl_clipfit.__all__) == len(set(cl_clipfit.__all__))


@pytest.mark.parametrize("name", sorted(HOMES))
def test_every_name_is_the_one_at_its_home(name: str) -> None:
    home = import_module(HOMES[name])
    expected = home if HOMES[name].endswith(f".{name}") else getattr(home, name)
    assert getattr(cl_clipfit, name) is expected


def test_names_show_before_they_load_and_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, cl_clipfit; print(*dir(cl_clipfit));"
        "print([m for m in ('torch', 'avalanche', 'pydantic', 'open_clip') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown, heavy = done.stdout.splitlines()
    assert set(cl_clipfit.__all__) <= set(shown.split())
    assert heavy == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'cl_clipfit' has no attribute 'Delta'"):
        _ = cl_clipfit.Delta  # type: ignore[attr-defined]
