"""Read users' text and YAML files: class names, settings, and YAML nodes with values as text."""

import csv
import json
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cl_clipfit.errors import UserError, nearest

LARGEST_TEXT = 16 << 20  # bytes; the class names of ImageNet-21k take half a MiB
LARGEST_YAML = 2 << 20  # bytes; YAML is read a hundred times slower
MOST_NODES = 30_000  # values of a YAML file; one of the largest size could have half a million
_LONGEST_NUMBER = 40  # characters
_CONTROL = ("Cc", "Cs", "Zl", "Zp")
# Characters that change the direction of text.
_TURNING = "\ufeff\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_MAPPINGS = (".yaml", ".yml", ".json")
# Lines of a file that is not one name per line.
_OTHER_LINES = {
    "'old name: new name'": re.compile(r"[^:]*\S:\s+\S.*"),
    "'- name', a list": re.compile(r"-\s+\S.*"),
    "'\"name\",', in quotes": re.compile(r"([\"']).*\1,?"),
}
_NUMBERED = {
    "'number, name'": re.compile(r"(?P<number>[0-9]{1,6})(\s*[,;:.)]|\s)\s*\S.*"),
    "'name, number'": re.compile(r".*\S(\s*[,;:]|\t)\s*(?P<number>[0-9]{1,6})"),
}


def read_text(file: Path, place: str, most: int = LARGEST_TEXT) -> str:
    """Return a text file's content, without a byte-order mark.

    Args:
        file: the file.
        place: start of an error message, such as "--tasks FILE".
        most: maximum size in bytes.

    Raises:
        UserError: it is missing, too large, or not text.
    """
    if not file.is_file():
        raise UserError(f"{place}: there is no such file")
    try:
        check_size(file, place, most)
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{place}: the file cannot be read as text") from error


def check_size(file: Path, place: str, most: int = LARGEST_TEXT) -> None:
    """Refuse a file that is too large for names or settings.

    Raises:
        UserError: it has more than `most` bytes, or is not a regular file: a pipe may never end.
        OSError: there is no such file.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        reason = "cannot read it: it is not a regular file"
    elif status.st_size > most:
        reason = f"the file has more than {most >> 20} MiB of text"
    else:
        return
    raise UserError(f"{place}: {reason}", reason=reason)


class _Loader(yaml.SafeLoader):
    """A safe YAML loader that refuses what lets a small file exhaust memory or time."""

    nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases (*name), which can multiply values, and too many values."""
        event: Any = self.peek_event()
        self.nodes += 1
        if self.check_event(yaml.AliasEvent):
            alias = "an alias (*name): write out what it stands for"
            raise yaml.MarkedYAMLError(None, None, alias, event.start_mark)
        if self.nodes > MOST_NODES:
            many = f"more than {MOST_NODES:,} values"
            raise yaml.MarkedYAMLError(None, None, many, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Refuse keys that come twice, or that are not text."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                what = (
                    "a key is not text" if key.id != "scalar" else f"'{key.value}' is given twice"
                )
                raise yaml.MarkedYAMLError(None, None, what, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        """Refuse numbers that are so long that parsing or printing them takes forever."""
        if node.tag.endswith((":int", ":float")) and len(node.value) > _LONGEST_NUMBER:
            what = "a number of very many digits"
            raise yaml.MarkedYAMLError(None, None, what, node.start_mark)
        return super().construct_scalar(node)


def load_yaml(text: str) -> Any:
    """Load settings from YAML: plain values, lists, and mappings with unique keys.

    Raises:
        Exception: of any type, if it is not such YAML.
    """
    return yaml.load(text, Loader=_Loader)


def yaml_node(file: Path, place: str) -> Any:
    """Return a YAML file's tree of nodes, in which values are text and repeated keys are kept.

    Raises:
        UserError: it cannot be read, or is not valid YAML.
    """
    try:
        return yaml.compose(read_text(file, place, LARGEST_YAML), Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = problem or "too many nested lists"
        raise UserError(f"{place}{where}: not valid YAML: {problem}") from error


Lines = dict[tuple[str | int, ...], int]  # line, from 1, by path of keys and indices


def yaml_with_lines(file: Path, place: str) -> tuple[Any, Lines]:
    """Read a YAML file of settings, with the line of every value.

    Args:
        file: the file.
        place: start of an error message, such as the file's name.

    Returns:
        the content, and the line by path, as `("grid", "seed", 0)`.

    Raises:
        UserError: it cannot be read, or is not valid YAML.
    """
    lines: Lines = {}

    def walk(node: Any, path: tuple[str | int, ...]) -> None:
        lines[path] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                walk(value, (*path, key.value))
                lines[*path, key.value] = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                walk(value, (*path, index))

    if (node := yaml_node(file, place)) is None:
        return None, lines
    walk(node, ())
    try:
        return load_yaml(read_text(file, place, LARGEST_YAML)), lines
    except Exception as error:  # PyYAML may raise anything on values of a wrong type
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{place}{where}: not valid YAML: {problem or error}") from error


def scalar(node: Any, place: str) -> str:
    """Return the text of a node.

    Raises:
        UserError: it is a list or a mapping, or empty.
    """
    if not isinstance(node, yaml.ScalarNode) or not node.value.strip():
        raise UserError(f"{place}, line {node.start_mark.line + 1}: expected a name or a label")
    return node.value


def has_control(name: str) -> bool:
    """Return whether a name contains control characters, which would corrupt output and prompts."""
    return any(unicodedata.category(c) in _CONTROL or c in _TURNING for c in name)


def read_class_names(file: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Read class names: one per line in label order, or a YAML mapping from old names to new ones.

    Args:
        file: a mapping if its suffix is .yaml, .yml or .json, in upper or lower case.
        names: the class names of the data set, in label order.

    Raises:
        UserError: it cannot be read, or has the wrong number of names, or unknown, empty or
            unreadable ones, or its lines are not names alone.
    """
    place = f"--class-names {file}"
    if file.suffix.lower() in _MAPPINGS:
        mapping = _mapping(file, place)
        for old in (old for old in mapping if old not in names):
            raise UserError(f"{place}: no class is called '{old}'. {nearest(old, names)}")
        new_names = tuple(mapping.get(name, name) for name in names)
    else:
        new_names = tuple(line.strip() for line in read_text(file, place).strip().split("\n"))
        if len(new_names) != len(names):
            raise UserError(
                f"{place}: it has {len(new_names)} names, the data {len(names)} classes"
            )
        if form := other_lines(new_names):
            raise UserError(
                f"{place}: every line reads {form}: write a name alone on each line, in label"
                " order, or lines 'old name: new name' in a file that ends in .yaml"
            )
    for label, name in enumerate(new_names):
        if not name or has_control(name):
            raise UserError(f"{place}: the name of class {label} is empty or unreadable: {name!r}")
    return new_names


def read_prompts(file: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Read a CSV file of prompts: a class and one of its prompts per line.

    A first line `class,prompt` is a header. A prompt is whole, or has one "{}" for the name.

    Args:
        file: the file.
        names: of the classes.

    Raises:
        UserError: it cannot be read, a line is not of this form, or a class is unknown.
    """
    place = f"--prompts {file}"
    prompts: dict[str, list[str]] = {}
    for number, cells in enumerate(csv.reader(read_text(file, place).splitlines()), 1):
        cells = [cell.strip() for cell in cells]
        if not any(cells) or (number == 1 and cells == ["class", "prompt"]):
            continue
        where = f"{place}, line {number}"
        if len(cells) != 2 or not all(cells):
            raise UserError(f"{where}: expected a class and a prompt, as crow,a photo of a crow")
        name, prompt = cells
        if name not in names:
            raise UserError(f"{where}: unknown class '{name}'. {nearest(name, names)}")
        if prompt.count("{}") > 1 or has_control(prompt):
            raise UserError(f"{where}: a prompt has one '{{}}' at most, and no control characters")
        prompts.setdefault(name, []).append(prompt)
    if not prompts:
        raise UserError(f"{place}: the file holds no prompt")
    return prompts


def other_lines(lines: Sequence[str]) -> str:
    """Return the form of lines that all hold more than a name, which prompts would repeat.

    Example:
        >>> other_lines(["0, cat", "1, dog"]), other_lines(["cat", "dog"])
        ("'number, name'", '')
    """
    for form, line in _OTHER_LINES.items():
        if len(lines) > 1 and all(map(line.fullmatch, lines)):
            return form
    for form, line in _NUMBERED.items():
        numbers = [int(match["number"]) if (match := line.fullmatch(t)) else -1 for t in lines]
        if len(lines) > 1 and numbers in ([*range(len(lines))], [*range(1, len(lines) + 1)]):
            return form
    return ""


def _mapping(file: Path, place: str) -> dict[str, str]:
    pairs: Any = None
    if file.suffix.lower() == ".json":
        try:
            pairs = json.loads(read_text(file, place), object_pairs_hook=list)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: not valid JSON: {error}") from error
        texts = isinstance(pairs, list) and all(isinstance(pair, tuple) for pair in pairs)
        pairs = pairs if texts and all(isinstance(t, str) for p in pairs for t in p) else None
    elif isinstance(node := yaml_node(file, place), yaml.MappingNode):
        pairs = [(scalar(key, place), scalar(value, place)) for key, value in node.value]
    if pairs is None:
        raise UserError(f"{place}: expected lines 'old name: new name'")
    twice = [old for old, count in Counter(old for old, _ in pairs).items() if count > 1]
    if twice:
        raise UserError(f"{place}: '{twice[0]}' is named twice")
    return dict(pairs)
