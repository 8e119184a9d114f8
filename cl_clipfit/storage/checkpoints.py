"""The last two states of an unfinished run, in files whose hashes are checked on reading.

A checkpoint is a safetensors file: tensors, and everything else as JSON in its header. Its name
contains the SHA-256 hash of its bytes, so that any change to any byte is detected. What stays the
same over several checkpoints, the state before a task, is a file of its own, which they name; the
newest checkpoint with another one is kept too, so that no single file is all that is left.
"""

import contextlib
import json
import re
import struct
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cl_clipfit.errors import UserError
from cl_clipfit.storage.files import read_bytes, reading, removing, sha256, write_atomic, writing
from cl_clipfit.storage.manifest import CHECKPOINTS

KEPT = 2
SCHEMA = 5
MANY = 64  # longer sequences of integers, such as the classes of a long stream, become a tensor
INT64 = 2**63
LARGEST_STATE = 1 << 38  # bytes
_NAME = re.compile(r"(\d{6})-([0-9a-f]{64})\.safetensors")
_PART_NAME = re.compile(r"([0-9a-f]{64})\.part")
_SCALARS = frozenset((bool, int, float, str, type(None)))
_SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "deque": deque}


class UnsupportedError(TypeError):
    """A value that a checkpoint cannot hold."""


@dataclass(frozen=True)
class Part:
    """An entry of a state that later states share: it is written once, and must not change."""

    value: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run folder.

    Args:
        folder: of the run.
        warn: receives warnings about damaged files.
        writes: False in a process that only reads, beside one that writes.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None], writes: bool = True) -> None:
        self.folder, self.warn, self.writes = folder / CHECKPOINTS, warn, writes
        self._damaged: set[Path] = set()
        self.newest: Path | None = None  # the newest intact one that was written or read here
        self._part: tuple[Part, str] | None = None  # the newest one, and the name of its file
        self._named: dict[Path, list[str]] = {}  # the parts of each checkpoint

    def save(self, state: dict[str, Any]) -> None:
        """Write a state, then delete those not needed and those that `load` found damaged.

        Args:
            state: nested dictionaries, lists, tuples, tensors, numbers, strings and None; entries
                may be a `Part`.

        Raises:
            UserError: the folder cannot be written; earlier checkpoints are kept.
            UnsupportedError: the state contains a value of another type.
        """
        parts = {k: self._write_part(v) for k, v in state.items() if isinstance(v, Part)}
        data = as_bytes({k: v for k, v in state.items() if k not in parts}, parts)
        existing = self._files()
        number = existing[-1][0] + 1 if existing else 1
        file = self.folder / f"{number:06d}-{sha256(data)}.safetensors"
        write_atomic(file, data)
        self.newest, self._named[file] = file, list(parts.values())
        self._remove_old(file)
        for old in self._damaged:
            with contextlib.suppress(UserError):  # a damaged file does no harm
                _remove(old)

    def _write_part(self, part: Part) -> str:
        """Write a part, unless it is there; return the name of its file."""
        if self._part and self._part[0] is part and (self.folder / self._part[1]).is_file():
            return self._part[1]
        data = as_bytes(part.value, {})
        name = f"{sha256(data)}.part"
        write_atomic(self.folder / name, data)
        self._part = part, name
        return name

    def _remove_old(self, newest: Path) -> None:
        """Remove all but the last `KEPT`, the last one with other parts, and what they name."""
        others = [file for file in self._intact() if file != newest]
        kept = others[max(0, len(others) + 1 - KEPT) :]
        differs = [file for file in others if self._parts(file) != self._parts(newest)]
        kept += [newest, *differs[-1:]]
        named = {name for file in kept for name in self._parts(file)}
        for old in [file for file in others if file not in kept]:
            _remove(old)
        for path in self._paths():
            if _PART_NAME.fullmatch(path.name) and path.name not in named:
                with contextlib.suppress(UserError):  # may be damaged; it does no harm
                    _remove(path)

    def _parts(self, file: Path) -> list[str]:
        """Return the names of a checkpoint's parts; none if it cannot be read."""
        if file not in self._named:
            try:
                self._named[file] = list(_header(read_bytes(file, LARGEST_STATE), file)[1].values())
            except UserError:
                self._named[file] = []
        return self._named[file]

    def load(self) -> dict[str, Any] | None:
        """Return the newest intact state, or None if nothing was saved yet.

        Raises:
            UserError: there are checkpoints, and none of them is intact; nothing is deleted.
        """
        files = self._files()
        for _, digest, file in reversed(files):
            try:
                data = read_bytes(file, LARGEST_STATE)
            except UserError as error:
                self.warn(f"{error}: trying the previous checkpoint")
            else:
                if sha256(data) != digest:
                    self.warn(f"{file} is damaged: trying the previous checkpoint")
                elif (state := self._read(data, file)) is not None:
                    self.newest = file
                    return state
            self._damaged.add(file)
        if files:
            raise UserError(
                f"{self.folder}: none of the {len(files)} checkpoints is intact: restore one, or"
                " restart with --fresh"
            )
        return None

    def _read(self, data: bytes, file: Path) -> dict[str, Any] | None:
        """Return the state in a checkpoint's bytes; None if one of its parts is damaged."""
        state, parts = from_bytes(data, file), _header(data, file)[1]
        for key, name in parts.items():
            path = self.folder / name
            try:
                content = read_bytes(path, LARGEST_STATE)
            except UserError as error:
                self.warn(f"{error}: trying the previous checkpoint")
                return None
            if f"{sha256(content)}.part" != name:
                self.warn(f"{path} is damaged: trying the previous checkpoint")
                return None
            part = Part(from_bytes(content, path))
            self._part, state[key] = (part, name), part
        self._named[file] = list(parts.values())
        return state

    def one_before(self) -> bool:
        """Return whether there is an intact checkpoint before the newest one."""
        return len(self._intact()) > 1

    def clear(self) -> None:
        """Remove all checkpoints, and their folder if it is empty then.

        Raises:
            UserError: they cannot be removed.
        """
        for _, _, file in self._files():
            _remove(file)
        for path in self._paths():
            left = path.name.startswith(".") and re.search(r"\.(safetensors|part)\.", path.name)
            if left or _PART_NAME.fullmatch(path.name):  # left by interrupted writes, or a part
                _remove(path)
        with writing(self.folder):
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _intact(self) -> list[Path]:
        """Return the checkpoints that are not known to be damaged, oldest first."""
        return [file for _, _, file in self._files() if file not in self._damaged]

    def _files(self) -> list[tuple[int, str, Path]]:
        """Return number, hash and path of every checkpoint, oldest first."""
        matches = ((_NAME.fullmatch(path.name), path) for path in self._paths())
        return sorted((int(match[1]), match[2], path) for match, path in matches if match)

    def _paths(self) -> list[Path]:
        with reading(self.folder):
            return list(self.folder.iterdir()) if self.folder.is_dir() else []


def _remove(file: Path) -> None:
    with removing(file):
        file.unlink(missing_ok=True)


def as_bytes(state: dict[str, Any], parts: dict[str, str]) -> bytes:
    """Return the bytes of a checkpoint or a part."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps({"schema": SCHEMA, "state": pack(state, tensors), "parts": parts})
    return save(tensors, {"state": text})


@contextlib.contextmanager
def _understanding(file: Path) -> Iterator[None]:
    """Explain bytes that are not a checkpoint: anyone can name a file after its hash."""
    try:
        yield
    except (
        struct.error, SafetensorError, ValueError, LookupError, TypeError, StopIteration,
        AttributeError, RecursionError,
    ) as error:  # fmt: skip
        raise UserError(f"{file} is not a checkpoint: restart with --fresh") from error


def _header(data: bytes, file: Path) -> tuple[Any, dict[str, str]]:
    """Return a packed state, and the names of its parts by key."""
    with _understanding(file):
        (length,) = struct.unpack("<Q", data[:8])
        content = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["state"])
        schema = content["schema"]
        if schema == SCHEMA:
            parts = dict(content["parts"])
            if not all(_PART_NAME.fullmatch(name) for name in parts.values()):
                raise TypeError("not names of parts")
            return content["state"], parts
    raise UserError(
        f"{file} has schema {schema}, this version reads {SCHEMA}: restart with --fresh"
    )


def from_bytes(data: bytes, file: Path) -> dict[str, Any]:
    """Return the state in the bytes of a checkpoint or a part, without its parts."""
    packed, _ = _header(data, file)
    with _understanding(file):
        state = unpack(packed, load(data))
        if not isinstance(state, dict):
            raise TypeError("not a dictionary")
    return state


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Convert a value to JSON, with its tensors stored separately under numbers.

    Args:
        value: as for `Checkpoints.save`, or NumPy arrays and numbers. The keys of dictionaries
            are strings or integers.
        tensors: receives copies of the tensors, on the CPU.

    Raises:
        UnsupportedError: any other type, such as a parameter or a tensor that requires gradients.

    Example:
        >>> pack({"a": [1, (2.5, None)]}, {})
        {'dict': [['a', {'list': [1, {'tuple': [2.5, None]}]}]]}
    """
    if isinstance(value, Tensor):
        if isinstance(value, torch.nn.Parameter) or value.requires_grad:
            raise UnsupportedError("a tensor that requires gradients")
        if value.is_meta or value.is_complex() or value.layout != torch.strided:
            raise UnsupportedError("a tensor of a kind that safetensors does not support")
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name, "cpu": value.device.type == "cpu"}
    if type(value) in (dict, OrderedDict):
        if not all(type(key) in (str, int) for key in value):
            raise UnsupportedError("a dictionary with keys other than strings and integers")
        items = [[key, pack(item, tensors)] for key, item in value.items()]
        return {"dict" if type(value) is dict else "ordered": items}
    if isinstance(value, deque) and value.maxlen is not None:
        return {"bounded": [pack(item, tensors) for item in value], "most": value.maxlen}
    if type(value) in _SEQUENCES.values():
        kind, types = type(value).__name__, set(map(type, value))
        if types == {int} and len(value) > MANY and -INT64 <= min(value) <= max(value) < INT64:
            return {"integers": pack(torch.tensor(list(value)), tensors)["tensor"], "of": kind}
        return {kind: list(value) if types <= _SCALARS else [pack(i, tensors) for i in value]}
    if type(value) in _SCALARS:
        return value
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biuf":
        kind = "array" if isinstance(value, np.ndarray) else "number"
        tensor = torch.from_numpy(np.array(value))
        return {kind: pack(tensor, tensors)["tensor"]}
    raise UnsupportedError(type(value).__name__)


def unpack(value: Any, tensors: dict[str, Tensor], device: Any = "cpu") -> Any:
    """Invert `pack`; tensors that were not on the CPU are moved to `device`."""
    if not isinstance(value, dict):
        return value
    kind, items = next(iter(value.items()))
    if kind == "tensor":
        return tensors[items] if value["cpu"] else tensors[items].to(device)
    if kind in ("array", "number"):
        array = tensors[items].numpy()
        return array if kind == "array" else array[()]
    if kind in ("dict", "ordered"):
        pairs = ((key, unpack(item, tensors, device)) for key, item in items)
        return dict(pairs) if kind == "dict" else OrderedDict(pairs)
    if kind == "bounded":
        return deque((unpack(item, tensors, device) for item in items), value["most"])
    if kind == "integers":
        return _SEQUENCES[value["of"]](tensors[items].tolist())
    return _SEQUENCES[kind](unpack(item, tensors, device) for item in items)
