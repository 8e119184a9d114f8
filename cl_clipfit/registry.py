"""Find strategies and scenarios by name: in two folders, entry points and `--plugin` files.

Names are found by parsing files, not by running them, so that listing needs neither PyTorch nor
working plug-ins. A file describes itself at its top level:

- its docstring: the first line is its summary;
- `NAME`: its name; default: the file's name with "-" for "_";
- other upper-case literals: shown by `list` and `info`. Some affect runs: `TASKS`, `CLASS_ORDER`,
  `MODEL`, `PROBES`, `DOWNLOAD`, `PROTOCOL` and `RECIPE` of a scenario, `RECIPE`, `RECIPES` and
  `PUBLISHED` of a strategy (see `experiment/scenario_file.py` and `experiment/recipes.py`).

A metric file defines a function `metric`; see `metrics/by_image`.

A strategy file defines one subclass of `CLIPStrategy`, and a scenario file a function `load`. The
settings that `--set NAME.key=value` accepts are a subclass of `Options`: the `options_class` of the
strategy, or the annotation of the first parameter of `load(options: MyOptions, request)`.
"""

import ast
import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from cl_clipfit.config.options import Options
from cl_clipfit.errors import UserError, is_file, nearest
from cl_clipfit.runtime.code_files import files_read, imported_files

Kind = Literal["strategies", "scenarios", "metrics"]
KINDS: tuple[Kind, ...] = ("strategies", "scenarios", "metrics")
_PACKAGES: dict[Kind, str] = {
    "strategies": "cl_clipfit.strategies",
    "scenarios": "cl_clipfit.scenarios",
    "metrics": "cl_clipfit.metrics.by_image",
}
ONE: dict[Kind, str] = {"strategies": "strategy", "scenarios": "scenario", "metrics": "metric"}
# What Python raises on invalid code, or on code that is nested too deeply.
_UNREADABLE = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)
ENTRY_POINT_GROUPS = {kind: f"cl_clipfit.{kind}" for kind in KINDS}


@dataclass
class Entry:
    """A strategy or scenario, described but not yet imported.

    Attributes:
        kind: strategy or scenario.
        name: its name on the command line.
        file: the file with its code.
        summary: first line of its docstring.
        about: its upper-case literals.
        keys: names of the options that its file declares.
        bases: names of the classes that those in its file derive from.
        module: importable module name; "" for a `--plugin` file.
        error: why it cannot be read; "" if it can.
        sha256: hash of the file as it was read, since an edited method is a different method.
        uses: hashes of what its code uses besides its file, known once it is imported: modules that
            are not of a library, and files below its folder that were read meanwhile.
    """

    kind: Kind
    name: str
    file: Path
    summary: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    module: str = ""
    error: str = ""
    sha256: str = ""
    uses: dict[str, str] = field(default_factory=dict)

    @property
    def code_hash(self) -> str:
        """The hash of all files that its code consists of."""
        text = json.dumps([self.sha256, self.uses], sort_keys=True)
        return sha256(text.encode()).hexdigest() if self.uses else self.sha256

    def load(self) -> ModuleType:
        """Import the file.

        Raises:
            UserError: it cannot be imported; the message names it.
        """
        try:
            if self.module.startswith("cl_clipfit."):  # of which `package_hash` tells
                return importlib.import_module(self.module)
            with files_read(self.file.parent) as read:
                if self.module:
                    module = importlib.import_module(self.module)
                else:
                    module = _import_file(self.file, self.sha256)
            self.uses = _USES.setdefault(module.__name__, _hashes(module, read))
            return module
        except (Exception, SystemExit) as error:  # a script may call sys.exit when imported
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.file.name} fails to import: {type(error).__name__}: {reason}"
            ) from error

    def strategy_class(self) -> type[Any]:
        """Import a strategy's file and return the subclass of `CLIPStrategy` that it defines.

        Raises:
            UserError: it cannot be imported, or does not define exactly one.
        """
        from cl_clipfit.training.strategy import CLIPStrategy

        module = self.load()
        classes = [
            cls
            for cls in vars(module).values()
            if isinstance(cls, type)
            and issubclass(cls, CLIPStrategy)
            and cls.__module__ == module.__name__  # not imported as a base class
        ]
        if not classes:
            raise UserError(f"{self.file.name}: it defines no subclass of CLIPStrategy")
        if len(classes) > 1:
            names = ", ".join(cls.__name__ for cls in classes)
            raise UserError(
                f"{self.file.name}: expected one subclass of CLIPStrategy, found {names}"
            )
        return classes[0]

    def metric_function(self) -> Callable[..., Any]:
        """Import a metric's file and return its function `metric`.

        Raises:
            UserError: it cannot be read or imported, or defines no such function.
        """
        if self.error:
            raise UserError(self.error)
        function = getattr(self.load(), "metric", None)
        if not callable(function):
            raise UserError(f"{self.file.name}: it defines no function metric(rows, result)")
        return function

    def options_class(self) -> type[Options]:
        """Return the class of its options; plain `Options` if it has none.

        Raises:
            UserError: the file cannot be imported, or names something that is not such a class.
        """
        if self.kind == "metrics":
            return Options
        if self.kind == "strategies":
            cls, where = self.strategy_class().options_class, "options_class"
        else:
            cls, where = self._annotated_options(), "the annotation of load(options, ...)"
        if isinstance(cls, type) and issubclass(cls, Options):
            return cls
        raise UserError(f"{self.file.name}: {where} is not a subclass of Options: {cls!r}")

    def _annotated_options(self) -> Any:
        """Return the annotation of the first parameter of `load`; `Options` if there is none."""
        load = getattr(self.load(), "load", None)
        if not callable(load):
            return Options  # loading the data reports what is missing
        try:
            parameters = inspect.signature(load, eval_str=True).parameters.values()
        except Exception as error:  # a string annotation may contain any code
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{self.file.name}: annotations of load: {reason}") from error
        annotation = next((p.annotation for p in parameters), inspect.Parameter.empty)
        return Options if annotation is inspect.Parameter.empty else annotation


# What was imported stays as it is in this process, whatever becomes of the files.
_USES: dict[str, dict[str, str]] = {}


def _hashes(module: ModuleType, read: Iterable[Path]) -> dict[str, str]:
    """Return the hash of each file that a plug-in uses; a module is called as its import is."""
    if module.__name__ in _USES:
        return _USES[module.__name__]
    folder = Path(module.__file__ or "").resolve().parent
    files = {file.relative_to(folder).as_posix(): file for file in read}
    for name, file in imported_files(module):
        place = name.replace(".", "/") + ("/__init__" if file.stem == "__init__" else "")
        files[place + file.suffix] = file
    return {name: sha256(files[name].read_bytes()).hexdigest() for name in sorted(files)}


def _import_file(file: Path, expected: str) -> ModuleType:
    """Run exactly the bytes that were hashed; bytecode caches compare only size and seconds."""
    name = f"cl_clipfit_plugin_{file.stem}_{expected[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    code = file.read_bytes()
    if sha256(code).hexdigest() != expected:
        raise ImportError("the file was changed while the command ran")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look modules up by name
    try:
        exec(compile(code, str(file), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


_parse = functools.lru_cache(maxsize=256)(ast.parse)  # a command describes all files twice


def describe(file: Path, kind: Kind | None = None, module: str = "", name: str = "") -> Entry:
    """Describe a file from its literals, without running it.

    Args:
        file: a Python file.
        kind: default: a scenario if it defines `load` and no strategy, a metric if it defines
            `metric` and no strategy, else a strategy.
        module: importable name, if it has one.
        name: name to use if the file does not define `NAME`.
    """
    entry = Entry(kind or "strategies", name or file.stem.replace("_", "-"), file, module=module)
    try:
        code = file.read_bytes()
        entry.sha256 = sha256(code).hexdigest()
        tree = _parse(code)
        bases = {
            node: [ast.unparse(base) for base in node.bases]
            for node in tree.body
            if isinstance(node, ast.ClassDef)
        }
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
    entry.bases = tuple(name for names in bases.values() for name in names)
    entry.keys = tuple(
        field.target.id
        for node, names in bases.items()
        for field in node.body
        if any("Options" in name for name in names)
        and isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
    )
    entry.name = str(entry.about.pop("NAME", entry.name))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", entry.name):  # in names of folders
        entry.error = (
            f"{file.name}: NAME = {entry.name[:80]!r}: a name has letters, digits, '.', '_' and"
            " '-', 80 at most"
        )
        entry.name = file.stem.replace("_", "-")
    functions = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    if kind is None and not any("Strategy" in name for name in entry.bases):
        kinds: dict[str, Kind] = {"load": "scenarios", "metric": "metrics"}
        entry.kind = next((k for name, k in kinds.items() if name in functions), entry.kind)
    return entry


def _literals(tree: ast.Module) -> dict[str, Any]:
    """Return the literals that a module assigns to public upper-case names, annotated or not."""
    literals = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        if isinstance(target, ast.Name) and target.id.isupper() and target.id[0] != "_":
            with contextlib.suppress(*_UNREADABLE):  # computed values are unknown before it runs
                literal = ast.literal_eval(value)
                str(literal)  # fails for an integer with very many digits
                literals[target.id] = literal
    return literals


def _folder(kind: Kind) -> list[Entry]:
    package = _PACKAGES[kind]
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [f for folder in folders for f in sorted(Path(folder).glob("*.py"))]
    return [describe(f, kind, f"{package}.{f.stem}") for f in files if not f.name.startswith("_")]


@functools.cache
def _entry_points(group: str, path: tuple[str, ...]) -> list[importlib.metadata.EntryPoint]:
    """Return those of all packages on a path; to read them takes longer than all else here."""
    return [*importlib.metadata.entry_points(group=group)]


def _installed(kind: Kind) -> list[Entry]:
    entries = []
    for point in _entry_points(ENTRY_POINT_GROUPS[kind], tuple(sys.path)):
        try:
            spec = importlib.util.find_spec(point.module)
        except Exception as error:  # find_spec imports parent packages, which may raise anything
            entries.append(Entry(kind, point.name, Path(point.module), error=f"{error}"))
            continue
        if spec is None or spec.origin is None:
            reason = f"module {point.module} is not installed"
            entries.append(Entry(kind, point.name, Path(point.module), error=reason))
        else:
            entries.append(describe(Path(spec.origin), kind, point.module, point.name))
    return entries


def describe_file(file: Path, kind: Kind | None, option: str) -> Entry:
    """Describe a file that a command names.

    Args:
        file: the file.
        kind: as in `describe`.
        option: that names it.

    Raises:
        UserError: there is no such file, or it is not Python code.
    """
    if not is_file(file):
        raise UserError(f"{option} {file}: there is no such file")
    if file.suffix != ".py":
        raise UserError(f"{option} {file}: a plug-in is a Python file (.py)")
    return describe(file, kind)


def _plugin_here(name: str) -> str:
    """Return a sentence that names the plug-in of this name in the working directory, if any."""
    file = Path(f"{name.replace('-', '_')}.py")
    return f"For the one in {file}: --plugin {file}." if is_file(file) else ""


class Registry:
    """All strategies, scenarios and metrics that this process can use.

    Args:
        plugins: files given with `--plugin`.

    Raises:
        UserError: a plug-in file does not exist, or two entries have the same name.
    """

    def __init__(self, plugins: Iterable[Path] = ()) -> None:
        self._entries: dict[Kind, dict[str, Entry]] = {kind: {} for kind in KINDS}
        self.plugins: list[Entry] = []
        for kind in KINDS:
            for entry in [*_folder(kind), *_installed(kind)]:
                self._add(entry)
        for file in plugins:
            self.plugins.append(describe_file(file, None, "--plugin"))
            self._add(self.plugins[-1])

    def _add(self, entry: Entry) -> None:
        taken = self._entries[entry.kind].get(entry.name)
        if taken and taken.file.resolve() != entry.file.resolve():
            raise UserError(
                f"{entry.file} and {taken.file} both define {entry.kind} '{entry.name}':"
                " change the NAME of one of them"
            )
        self._entries[entry.kind][entry.name] = entry

    def entries(self, kind: Kind) -> list[Entry]:
        """Return all entries of a kind, sorted by name."""
        return [self._entries[kind][name] for name in sorted(self._entries[kind])]

    def get(self, kind: Kind, name: str) -> Entry:
        """Return an entry by its name.

        Raises:
            UserError: the name is unknown, or the file cannot be read.
        """
        entry = self._entries[kind].get(name)
        if entry is None:
            advice = _plugin_here(name) or nearest(name, self._entries[kind])
            raise UserError(f"unknown {ONE[kind]} '{name}'. {advice}")
        if entry.error:
            raise UserError(entry.error)
        return entry

    def strategy_class(self, name: str) -> type[Any]:
        """Import a strategy's file and return its class; see `Entry.strategy_class`."""
        return self.get("strategies", name).strategy_class()

    def trained_class(self, name: str) -> type[Any]:
        """Return a strategy's class as it runs by default: over its default base, if it has one."""
        cls = self.strategy_class(name)
        base = getattr(cls.options_class(), cls.base_option or "", "none")
        return cls if base == "none" else cls.over(self.trained_class(base))
