"""The last two states of an unfinished run, each in one file whose hash is checked on reading.

A checkpoint is a safetensors file: tensors, and everything else as JSON in its header. Its name
contains the SHA-256 hash of its bytes, so that any change to any byte is detected.
"""

import contextlib
import json
import re
import struct
from collections import OrderedDict, deque
from collections.abc import Callable
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
SCHEMA = 4
MANY = 64  # longer sequences of integers, such as the classes of a long stream, become a tensor
INT64 = 2**63
LARGEST_STATE = 1 << 38  # bytes
_NAME = re.compile(r"(\d{6})-([0-9a-f]{64})\.safetensors")
_SCALARS = frozenset((bool, int, float, str, type(None)))
_SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "deque": deque}


class UnsupportedError(TypeError):
    """A value that a checkpoint cannot hold."""


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

    def save(self, state: dict[str, Any]) -> None:
        """Write a state, then delete all but the last `KEPT` and those that `load` found damaged.

        Args:
            state: nested dictionaries, lists, tuples, tensors, numbers, strings and None.

        Raises:
            UserError: the folder cannot be written; earlier checkpoints are kept.
            UnsupportedError: the state contains a value of another type.
        """
        tensors: dict[str, Tensor] = {}
        text = json.dumps({"schema": SCHEMA, "state": pack(state, tensors)})
        data = save(tensors, {"state": text})
        existing = self._files()
        number = existing[-1][0] + 1 if existing else 1
        file = self.folder / f"{number:06d}-{sha256(data)}.safetensors"
        write_atomic(file, data)
        self.newest = file
        intact = [file for file in self._intact() if file != self.newest]
        for old in intact[: len(intact) + 1 - KEPT]:
            _remove(old)
        for old in self._damaged:
            with contextlib.suppress(UserError):  # a damaged file does no harm
                _remove(old)

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
                if sha256(data) == digest:
                    self.newest = file
                    return read_checkpoint(data, file)
                self.warn(f"{file} is damaged: trying the previous checkpoint")
            self._damaged.add(file)
        if files:
            raise UserError(
                f"{self.folder}: none of the {len(files)} checkpoints is intact: restore one, or"
                " restart with --fresh"
            )
        return None

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
        for leftover in self.folder.glob(".*.safetensors.*"):  # left by interrupted writes
            _remove(leftover)
        with writing(self.folder):
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _intact(self) -> list[Path]:
        """Return the checkpoints that are not known to be damaged, oldest first."""
        return [file for _, _, file in self._files() if file not in self._damaged]

    def _files(self) -> list[tuple[int, str, Path]]:
        """Return number, hash and path of every checkpoint, oldest first."""
        with reading(self.folder):
            paths = list(self.folder.iterdir()) if self.folder.is_dir() else []
        matches = ((_NAME.fullmatch(path.name), path) for path in paths)
        return sorted((int(match[1]), match[2], path) for match, path in matches if match)


def _remove(file: Path) -> None:
    with removing(file):
        file.unlink(missing_ok=True)


def read_checkpoint(data: bytes, file: Path) -> dict[str, Any]:
    """Return the state in the bytes of a checkpoint.

    Raises:
        UserError: they are not a checkpoint's, or of another schema.
    """
    try:
        (length,) = struct.unpack("<Q", data[:8])
        content = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["state"])
        if content["schema"] == SCHEMA:
            state = unpack(content["state"], load(data))
            if not isinstance(state, dict):
                raise TypeError("not a dictionary")
            return state
    except (
        struct.error, SafetensorError, ValueError, LookupError, TypeError, StopIteration,
        AttributeError, RecursionError,
    ) as error:  # fmt: skip  # anyone can name a file after its hash
        raise UserError(f"{file} is not a checkpoint: restart with --fresh") from error
    raise UserError(
        f"{file} has schema {content['schema']}, this version reads {SCHEMA}: restart with --fresh"
    )


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
