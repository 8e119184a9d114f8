"""The last two states of an unfinished run, each one file that is read whole or not at all.

A checkpoint is a safetensors file: tensors, and everything else as JSON in its header. Its name
holds the SHA-256 hash of its bytes, so that any change of any byte is noticed.
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

FOLDER = "checkpoints"
KEPT = 2
SCHEMA = 4
MANY = 64  # integers, such as the classes of a long stream: from here on they are a tensor
INT64 = 2**63
LARGEST_STATE = 1 << 38  # bytes
_NAME = re.compile(r"(\d{6})-([0-9a-f]{64})\.safetensors")
_SCALARS = frozenset((bool, int, float, str, type(None)))
_SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "deque": deque}


class UnsupportedError(TypeError):
    """A value that no checkpoint can hold."""


class Checkpoints:
    """The checkpoints of a run folder.

    Args:
        folder: of the run.
        warn: told about damaged files.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self.folder, self.warn = folder / FOLDER, warn
        self._damaged: set[Path] = set()
        self.newest: Path | None = None  # of those that are whole, written or read here

    def save(self, state: dict[str, Any]) -> None:
        """Write a state, then drop all but the last `KEPT`, and those that `load` found damaged.

        Args:
            state: of dictionaries, lists, tuples, tensors, numbers, strings and None.

        Raises:
            UserError: the folder cannot be written; earlier checkpoints stay.
            UnsupportedError: it holds something else.
        """
        tensors: dict[str, Tensor] = {}
        text = json.dumps({"schema": SCHEMA, "state": pack(state, tensors)})
        data = save(tensors, {"state": text})
        known = self._files()
        number = known[-1][0] + 1 if known else 1
        file = self.folder / f"{number:06d}-{sha256(data)}.safetensors"
        write_atomic(file, data)
        self.newest = file
        whole = [file for file in self._whole() if file != self.newest]
        for old in whole[: len(whole) + 1 - KEPT]:
            _remove(old)
        for old in self._damaged:
            with contextlib.suppress(UserError):  # it is in nobody's way
                _remove(old)

    def load(self) -> dict[str, Any] | None:
        """Return the newest whole state; None where nothing was saved yet.

        Raises:
            UserError: there are files, and none of them is whole; nothing is deleted.
        """
        files = self._files()
        for _, digest, file in reversed(files):
            try:
                data = read_bytes(file, LARGEST_STATE)
            except UserError as error:
                self.warn(f"{error}: trying the one before")
            else:
                if sha256(data) == digest:
                    self.newest = file
                    return _read(data, file)
                self.warn(f"{file} is damaged: trying the one before")
            self._damaged.add(file)
        if files:
            raise UserError(
                f"{self.folder}: none of {len(files)} checkpoints is whole: restore one, or begin"
                " again with --fresh"
            )
        return None

    def one_before(self) -> bool:
        """Tell whether there is a whole one besides the newest."""
        return len(self._whole()) > 1

    def clear(self) -> None:
        """Remove all checkpoints, and their folder where nothing else is in it.

        Raises:
            UserError: they cannot be removed.
        """
        for _, _, file in self._files():
            _remove(file)
        for rest in self.folder.glob(".*.safetensors.*"):  # of writes that were killed
            _remove(rest)
        with writing(self.folder):
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _whole(self) -> list[Path]:
        """Return those that were not found damaged, the oldest first."""
        return [file for _, _, file in self._files() if file not in self._damaged]

    def _files(self) -> list[tuple[int, str, Path]]:
        """Return number, hash and path of every checkpoint, the oldest first."""
        with reading(self.folder):
            paths = list(self.folder.iterdir()) if self.folder.is_dir() else []
        found = ((_NAME.fullmatch(path.name), path) for path in paths)
        return sorted((int(match[1]), match[2], path) for match, path in found if match)


def _remove(file: Path) -> None:
    with removing(file):
        file.unlink(missing_ok=True)


def _read(data: bytes, file: Path) -> dict[str, Any]:
    try:
        (length,) = struct.unpack("<Q", data[:8])
        content = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["state"])
        if content["schema"] == SCHEMA:
            state = unpack(content["state"], load(data))
            if not isinstance(state, dict):
                raise TypeError("no dictionary")
            return state
    except (
        struct.error, SafetensorError, ValueError, LookupError, TypeError, StopIteration,
        AttributeError, RecursionError,
    ) as error:  # fmt: skip  # whoever writes a file can name it by its hash
        raise UserError(f"{file} is no checkpoint: begin again with --fresh") from error
    raise UserError(
        f"{file} has schema {content['schema']}, this version reads {SCHEMA}: begin again with"
        " --fresh"
    )


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Turn a value into JSON, with its tensors put aside by number.

    Args:
        value: see `Checkpoints.save`; NumPy's arrays and numbers too. Dictionaries have strings or
            integers as keys.
        tensors: where to put copies of them, on the CPU.

    Raises:
        UnsupportedError: anything else, such as a parameter or a tensor with a graph.

    Example:
        >>> pack({"a": [1, (2.5, None)]}, {})
        {'dict': [['a', {'list': [1, {'tuple': [2.5, None]}]}]]}
    """
    if isinstance(value, Tensor):
        if isinstance(value, torch.nn.Parameter) or value.requires_grad:
            raise UnsupportedError("a tensor with gradients")
        if value.is_meta or value.is_complex() or value.layout != torch.strided:
            raise UnsupportedError("a tensor of a kind that safetensors has not")
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name, "cpu": value.device.type == "cpu"}
    if type(value) in (dict, OrderedDict):
        if not all(type(key) in (str, int) for key in value):
            raise UnsupportedError("a dictionary with other keys than strings and integers")
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
    """Return what `pack` was given; tensors that were not on the CPU go to `device`."""
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
