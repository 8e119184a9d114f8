"""Strategies and scenarios by name: the two folders, installed entry points, `--plugin` files.

A name is found by reading a file, not by running it, so that listing needs neither torch nor
working plug-ins. A file says about itself, in literals at the top level:

- its docstring: the first line describes it;
- `NAME`: its name; default: the file's name with "-" for "_";
- other upper-case literals: shown by `list` and `info`. Some steer runs: a scenario's `TASKS`,
  `CLASS_ORDER`, `MODEL`, `PROBES`, `DOWNLOAD`, `PROTOCOL` and `RECIPE`, a strategy's `RECIPE`,
  `RECIPES` and `PUBLISHED` (see `experiment/scenario_file.py` and `experiment/recipes.py`).

A strategy file defines one subclass of `CLIPStrategy`; a scenario file a function `load`. The
settings that `--set NAME.key=value` accepts are a subclass of `Options`: the strategy's
`options_class`, or what `load(options: MyOptions, request)` is annotated with.
"""

import ast
import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from cl_clipfit.config.options import Options
from cl_clipfit.errors import UserError, is_file, nearest

Kind = Literal["strategies", "scenarios"]
KINDS: tuple[Kind, ...] = ("strategies", "scenarios")
# What Python raises for code that is none, or is nested too deep.
_UNREADABLE = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)
ENTRY_POINT_GROUPS = {kind: f"cl_clipfit.{kind}" for kind in KINDS}


@dataclass
class Entry:
    """One strategy or scenario, described but not yet loaded.

    Attributes:
        kind: which folder it belongs to.
        name: the name users type.
        file: where its code is.
        summary: first line of its docstring.
        about: its upper-case literals.
        module: importable module name; "" for a `--plugin` file.
        error: why it cannot be read; "" where it can.
        sha256: hash of the file's bytes as they were read: an edited method is another method.
    """

    kind: Kind
    name: str
    file: Path
    summary: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    module: str = ""
    error: str = ""
    sha256: str = ""

    def load(self) -> ModuleType:
        """Import the file.

        Raises:
            UserError: it fails to import; the message names it.
        """
        try:
            if self.module:
                return importlib.import_module(self.module)
            return _import_file(self.file, self.sha256)
        except (Exception, SystemExit) as error:  # a script may call sys.exit when imported
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.file.name} fails to import: {type(error).__name__}: {reason}"
            ) from error

    def strategy_class(self) -> type[Any]:
        """Import a strategy's file and return the one subclass of `CLIPStrategy` it defines.

        Raises:
            UserError: it fails to import, or defines none or several.
        """
        from cl_clipfit.training.strategy import CLIPStrategy

        module = self.load()
        classes = [
            cls
            for cls in vars(module).values()
            if isinstance(cls, type)
            and issubclass(cls, CLIPStrategy)
            and cls.__module__ == module.__name__  # others are imported, to be subclassed
        ]
        if not classes:
            raise UserError(f"{self.file.name}: it defines no subclass of CLIPStrategy")
        if len(classes) > 1:
            names = ", ".join(cls.__name__ for cls in classes)
            raise UserError(
                f"{self.file.name}: expected one subclass of CLIPStrategy, found {names}"
            )
        return classes[0]

    def options_class(self) -> type[Options]:
        """Return the settings that a strategy or scenario takes; plain `Options` if it has none.

        Raises:
            UserError: the file fails to import, or says something that is not a class of options.
        """
        if self.kind == "strategies":
            cls, where = self.strategy_class().options_class, "options_class"
        else:
            cls, where = self._annotated_options(), "the annotation of load(options, ...)"
        if isinstance(cls, type) and issubclass(cls, Options):
            return cls
        raise UserError(f"{self.file.name}: {where} is not a subclass of Options: {cls!r}")

    def _annotated_options(self) -> Any:
        """Return what the first parameter of `load` is annotated with; `Options` without one."""
        load = getattr(self.load(), "load", None)
        if not callable(load):
            return Options  # loading the data says what is missing
        try:
            parameters = inspect.signature(load, eval_str=True).parameters.values()
        except Exception as error:  # an annotation that is a string may hold any code
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{self.file.name}: annotations of load: {reason}") from error
        annotation = next((p.annotation for p in parameters), inspect.Parameter.empty)
        return Options if annotation is inspect.Parameter.empty else annotation


def _import_file(file: Path, sha256: str) -> ModuleType:
    """Run exactly the bytes that were hashed; bytecode caches go by time stamps of a second."""
    name = f"cl_clipfit_plugin_{file.stem}_{sha256[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    code = file.read_bytes()
    if hashlib.sha256(code).hexdigest() != sha256:
        raise ImportError("the file was changed while the command ran")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look modules up by name
    try:
        exec(compile(code, str(file), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def describe(file: Path, kind: Kind | None = None, module: str = "", name: str = "") -> Entry:
    """Read what a file says about itself, without running it.

    Args:
        file: a Python file.
        kind: default: a scenario where it defines `load` and no strategy, else a strategy.
        module: importable name, if it has one.
        name: name to use where the file gives none.
    """
    entry = Entry(kind or "strategies", name or file.stem.replace("_", "-"), file, module=module)
    try:
        code = file.read_bytes()
        entry.sha256 = hashlib.sha256(code).hexdigest()
        tree = ast.parse(code)
        bases = [ast.unparse(b) for n in tree.body if isinstance(n, ast.ClassDef) for b in n.bases]
    except (OSError, *_UNREADABLE) as error:
        where = (
            f"line {error.lineno}: {error.msg}"
            if isinstance(error, SyntaxError)
            else str(error) or type(error).__name__
        )
        entry.error = f"{file.name} cannot be read: {where}"
        return entry
    entry.summary = (ast.get_docstring(tree) or "").split("\n")[0]
    entry.about = _literals(tree)
    entry.name = str(entry.about.pop("NAME", entry.name))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", entry.name):  # part of folders' names
        entry.error = (
            f"{file.name}: NAME = {entry.name!r}: a name has letters, digits, '.', '_' and '-'"
        )
        entry.name = file.stem.replace("_", "-")
    loads = any(isinstance(n, ast.FunctionDef) and n.name == "load" for n in tree.body)
    if kind is None and loads and not any("Strategy" in base for base in bases):
        entry.kind = "scenarios"
    return entry


def _literals(tree: ast.Module) -> dict[str, Any]:
    """Return the upper-case public names a module sets to literals, annotated or not."""
    literals = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        if isinstance(target, ast.Name) and target.id.isupper() and target.id[0] != "_":
            with contextlib.suppress(*_UNREADABLE):  # computed: to show it, it would have to run
                literal = ast.literal_eval(value)
                str(literal)  # which a number of very many digits has none of
                literals[target.id] = literal
    return literals


def _folder(kind: Kind) -> list[Entry]:
    package = f"cl_clipfit.{kind}"
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [f for folder in folders for f in sorted(Path(folder).glob("*.py"))]
    return [describe(f, kind, f"{package}.{f.stem}") for f in files if not f.name.startswith("_")]


def _installed(kind: Kind) -> list[Entry]:
    entries = []
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUPS[kind]):
        try:
            spec = importlib.util.find_spec(point.module)
        except Exception as error:  # find_spec imports parent packages, which may do anything
            entries.append(Entry(kind, point.name, Path(point.module), error=f"{error}"))
            continue
        if spec is None or spec.origin is None:
            reason = f"module {point.module} is not installed"
            entries.append(Entry(kind, point.name, Path(point.module), error=reason))
        else:
            entries.append(describe(Path(spec.origin), kind, point.module, point.name))
    return entries


class Registry:
    """All strategies and scenarios this process can use.

    Args:
        plugins: files named with `--plugin`.

    Raises:
        UserError: a plug-in file that does not exist, or two entries of one name.
    """

    def __init__(self, plugins: Iterable[Path] = ()) -> None:
        self._entries: dict[Kind, dict[str, Entry]] = {"strategies": {}, "scenarios": {}}
        self.plugins: list[Entry] = []
        for kind in KINDS:
            for entry in [*_folder(kind), *_installed(kind)]:
                self._add(entry)
        for file in plugins:
            if not is_file(file):
                raise UserError(f"--plugin {file}: there is no such file")
            if file.suffix != ".py":
                raise UserError(f"--plugin {file}: a plug-in is a Python file (.py)")
            self.plugins.append(describe(file))
            self._add(self.plugins[-1])

    def _add(self, entry: Entry) -> None:
        taken = self._entries[entry.kind].get(entry.name)
        if taken and taken.file.resolve() != entry.file.resolve():
            raise UserError(
                f"{entry.file} and {taken.file} both define {entry.kind} '{entry.name}':"
                " give one another NAME"
            )
        self._entries[entry.kind][entry.name] = entry

    def entries(self, kind: Kind) -> list[Entry]:
        """All entries of a kind, by name."""
        return [self._entries[kind][name] for name in sorted(self._entries[kind])]

    def get(self, kind: Kind, name: str) -> Entry:
        """Find an entry.

        Raises:
            UserError: an unknown name, or a file that cannot be read.
        """
        entry = self._entries[kind].get(name)
        if entry is None:
            what = {"strategies": "strategy", "scenarios": "scenario"}[kind]
            raise UserError(f"unknown {what} '{name}'. {nearest(name, self._entries[kind])}")
        if entry.error:
            raise UserError(entry.error)
        return entry

    def strategy_class(self, name: str) -> type[Any]:
        """Import a strategy's file and return its class; see `Entry.strategy_class`."""
        return self.get("strategies", name).strategy_class()
