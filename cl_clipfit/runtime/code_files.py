"""The files that code consists of: of this package, and of a plug-in besides its own."""

import ast
import contextlib
import functools
import hashlib
import importlib.util
import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = {
    Path(folder).resolve()
    for folder in (
        *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
        str(_PACKAGE),
    )
}


def _is_library(file: Path) -> bool:
    return any(file.resolve().is_relative_to(folder) for folder in _LIBRARIES)


@functools.cache
def package_hash() -> str:
    """Return a hash over the code of this package."""
    digest = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(_PACKAGE).as_posix()}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def imported_files(module: ModuleType) -> Iterator[tuple[str, Path]]:
    """Yield name and file of the modules that a module imports, directly or through others.

    Libraries are left out, which versions identify, but not the package that the module is of.
    """
    package = module.__name__.partition(".")[0]
    seen, queue = {module.__name__}, [module]
    while queue:
        for name in _imports(queue.pop()):
            imported = sys.modules.get(name)
            file = getattr(imported, "__file__", None)
            if imported is None or file is None or name in seen:
                continue
            seen.add(name)
            if name.partition(".")[0] == package or not _is_library(Path(file)):
                queue.append(imported)
                yield name, Path(file)


def _imports(module: ModuleType) -> Iterator[str]:
    """Yield the names of modules that a module's `import` statements may mean."""
    file = Path(module.__file__ or "")
    if file.suffix != ".py":
        return
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(base, module.__package__ or "")
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


_listening: list[set[Path]] = []


@contextlib.contextmanager
def files_read(folder: Path) -> Iterator[set[Path]]:
    """Collect the files below a folder that are opened for reading in a `with` block; no code."""
    _listen()
    opened: set[Path] = set()
    files: set[Path] = set()
    _listening.append(opened)
    try:
        yield files
    finally:
        _listening.remove(opened)
        folder = folder.resolve()
        for file in opened:
            with contextlib.suppress(OSError):
                file = file.resolve()
                is_code = file.suffix in (".py", ".pyc") or _is_library(file)
                if file.is_file() and file.is_relative_to(folder) and not is_code:
                    files.add(file)


@functools.cache
def _listen() -> None:
    """Add the hook that notices opened files; Python cannot remove one."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and _listening and isinstance(arguments[0], str | bytes | os.PathLike):
            _, mode, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR) and "w" not in (mode or ""):
                for opened in _listening:
                    opened.add(Path(os.fsdecode(arguments[0])))

    sys.addaudithook(hook)
