"""The bank: what each task of a stream trained, on disk, checked byte by byte when read."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from cl_clipfit.errors import UserError, is_file
from cl_clipfit.storage.files import (
    LARGEST,
    has_holes,
    read_bytes,
    row,
    seal,
    sha256,
    unseal,
    write_atomic,
    writing,
)

SCHEMA = 1
INDEX = "index.json"
IDENTITY = ("architecture", "pretrained", "weights_sha256")
Kind = Literal["values", "host", "statistics"]
_LARGEST_SIZE = 1 << 40  # of a dimension, and bytes of a file: no model comes near
_MOST_DIMENSIONS = 16
_LONGEST = 200  # characters of what an index says that are repeated in an error
_Shape = Annotated[
    list[Annotated[int, Field(ge=0, le=_LARGEST_SIZE)]], Field(max_length=_MOST_DIMENSIONS)
]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _File(_Strict):
    name: str
    sha256: str
    bytes: Annotated[int, Field(ge=0, le=_LARGEST_SIZE)]


class _Record(_Strict):
    task: int
    classes: list[str]
    parents: list[str]
    files: dict[Kind, _File]


class _Base(_Strict):
    architecture: str | None
    pretrained: str | None
    weights_sha256: str | None


class _Index(_Strict):
    """What an index must be made of."""

    base: _Base
    strategy: str
    templates: list[str | list[str]]
    selection: dict[str, _Shape]
    tasks: list[_Record]

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, tasks: list[_Record]) -> list[_Record]:
        if any(t.task != number or "values" not in t.files for number, t in enumerate(tasks, 1)):
            raise ValueError("tasks are counted from 1, and have values")
        return tasks


class Tunable(Protocol):
    """What a bank asks of a model; `CLIPClassifier` is one."""

    identity: Any
    pretrained_values: dict[str, Tensor]

    def named_parameters(self) -> Any:
        """Yield names and parameters."""

    def load_values(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into parameters by name."""


@dataclass(frozen=True)
class Delta:
    """What one task trained.

    Attributes:
        task: counted from 1.
        classes: names of the task's classes.
        parents: what it was made of, such as the tasks that were merged.
        values: the trained values by parameter name, float32.
    """

    task: int
    classes: list[str]
    parents: list[str]
    values: dict[str, Tensor]

    def difference(self, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return values - base, by name; `base` may hold more names.

        The bank keeps values and not differences: base + (values - base) is not always `values`
        in floating point.
        """
        return {name: value - base[name].to(value) for name, value in self.values.items()}


class LazyValues(Mapping[str, Tensor]):
    """The tensors of a safetensors file by name, on the CPU, none of them kept in memory.

    Args:
        path: the file.
        names: its tensors, in the order of the model.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path, self.names = path, dict.fromkeys(names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names  # without reading the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class DeltaBank:
    """The trained values of every task, in a folder; made by `create` or `open`.

    `task-001.safetensors` holds the values, `task-001-host.safetensors` those of the method a
    merge started from, `task-001-statistics.safetensors` what routing needs. `index.json` lists
    sizes and SHA-256 hashes, and is written last: files it does not list do not belong to the
    bank, so that a kill at any moment leaves the bank as it was.

    Attributes:
        folder: where it is.
        index: what `index.json` holds; do not change it.
    """

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder, self.index = folder, index
        self._rows = [row(record) for record in index.get("tasks", [])]  # each rendered once

    @classmethod
    def create(
        cls,
        folder: Path,
        base: Mapping[str, str | None],
        strategy: str,
        templates: Sequence[Any] = ("a photo of a {}.",),
    ) -> Self:
        """Start a bank without tasks; an earlier bank in the folder is removed, nothing else.

        Args:
            folder: made where it is missing.
            base: the model's architecture, pretrained and weights_sha256.
            strategy: name of the method that trains.
            templates: prompt templates of the classes, or a sequence for each.

        Raises:
            UserError: the folder cannot be written.
            ValueError: `base` lacks a key.
        """
        bank = cls(Path(folder), {})
        bank._write_index(
            {
                "schema": SCHEMA,
                "base": _identity(base),
                "strategy": strategy,
                "templates": list(templates),
                "selection": {},
                "tasks": [],
            }
        )
        with writing(folder):
            for stale in bank.folder.glob("task-*.safetensors"):
                stale.unlink()
        return bank

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a bank's index; `load` and `verify` check the tensors.

        Raises:
            UserError: no bank there, or its index is not, byte for byte, what was written.
        """
        path = Path(folder) / INDEX
        data = _read(path, LARGEST)
        try:
            index = unseal(data)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is damaged: restore the file, or train again") from error
        if (schema := index.get("schema")) != SCHEMA:
            shown = type(schema).__name__ if isinstance(schema, list | dict) else str(schema)
            raise UserError(
                f"{path} has schema {shown[:_LONGEST]}, this version reads {SCHEMA}: train again"
            )
        try:  # whoever writes a bank can seal it
            _Index.model_validate(index)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))[:_LONGEST]
            raise UserError(f"{path} is no index of a bank: {where} is wrong") from error
        return cls(Path(folder), index)

    def __len__(self) -> int:
        return len(self.index["tasks"])

    def append(
        self,
        values: Mapping[str, Tensor],
        classes: Sequence[str],
        parents: Iterable[str] = (),
        host: Mapping[str, Tensor] | None = None,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add a task; the bank has it once this returns, and is as before if it does not.

        Args:
            values: trained values by parameter name; half precision is widened, which is exact.
            classes: names of the task's classes.
            parents: what it was made of.
            host: values of the method a merge started from, of the same names and shapes.
            statistics: tensors of any names and shapes.

        Raises:
            ValueError: nothing is selected, other names or shapes than those of the first task, or
                float64, which the files would round.
            UserError: the folder cannot be written.
        """
        task, stored, files = len(self) + 1, {"values": _prepare(values)}, {}
        selection = self.index["selection"] or _shapes(stored["values"])
        if not selection:
            raise ValueError(f"task {task} trained no parameter: there is nothing to keep")
        if host is not None:
            stored["host"] = _prepare(host)
        for kind, tensors in stored.items():
            if wrong := _difference(_shapes(tensors), selection):
                raise ValueError(f"{kind} of task {task} do not fit the bank: {wrong}")
        if statistics is not None:
            stored["statistics"] = _prepare(statistics)
        for kind, tensors in stored.items():
            name, data = _file_name(task, kind), save(tensors)
            write_atomic(self.folder / name, data)
            files[kind] = {"name": name, "sha256": sha256(data), "bytes": len(data)}
        record = {"task": task, "classes": list(classes), "parents": list(parents), "files": files}
        tasks = [*self.index["tasks"], record]
        self._write_index({**self.index, "selection": selection, "tasks": tasks})

    def keep(self, tasks: int) -> None:
        """Drop all but the first `tasks`.

        Raises:
            UserError: it holds fewer, or the folder cannot be written.
        """
        if len(self) < tasks:
            raise UserError(f"the bank {self.folder} holds {len(self)} tasks, and not {tasks}")
        if len(self) > tasks:
            selection = self.index["selection"] if tasks else {}
            self._write_index(
                {**self.index, "selection": selection, "tasks": self.index["tasks"][:tasks]}
            )

    def load(self, task: int, kind: Kind = "values") -> dict[str, Tensor]:
        """Read a task's tensors, on the CPU, all of them or none.

        Args:
            task: counted from 1.
            kind: "values", "host" or "statistics".

        Raises:
            UserError: no such task or kind, or the file is not, byte for byte, what was written.
        """
        files = self._record(task)["files"]
        if kind not in files:
            raise UserError(
                f"task {task} of the bank {self.folder} has no {kind}, only {', '.join(files)}"
            )
        path = self.folder / _file_name(task, kind)
        written, selection = files[kind]["bytes"], self.index["selection"]
        if kind != "statistics" and written > (most := _most_bytes(selection)):
            raise UserError(
                f"{path} does not fit its index: it has {written:,} bytes, and what a task trains"
                f" {most:,} at most; train again"
            )
        data = _read(path, written)
        if len(data) != written or sha256(data) != files[kind]["sha256"]:
            raise UserError(
                f"{path} is damaged ({path.stat().st_size} bytes, {written} were written):"
                " restore the file, or train again"
            )
        try:
            tensors = load(data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise UserError(f"{path} is no safetensors file: train again") from error
        if kind == "statistics":  # whose names and shapes are each task's own
            return tensors
        if wrong := _difference(_shapes(tensors), selection):
            raise UserError(f"{path} does not fit its index: {wrong}; train again")
        for name, value in tensors.items():  # whoever makes a bank can seal it
            if value.dtype != torch.float32:
                raise UserError(f"{path}: {name} is {value.dtype}, and a bank keeps float32")
        return {name: tensors[name] for name in selection}  # in the order of the model

    def lazy(self, task: int, kind: Kind = "values") -> "LazyValues":
        """Return a task's tensors, each read when it is asked for; verified now; errors as `load`.

        So a merge of many whole models needs the memory of one tensor of each.
        """
        self.load(task, kind)  # lets go of it again
        return LazyValues(self.folder / _file_name(task, kind), list(self.index["selection"]))

    def delta(self, task: int, kind: Kind = "values") -> Delta:
        """Return what a task (from 1) trained; errors as `load`."""
        record = self._record(task)
        return Delta(task, list(record["classes"]), list(record["parents"]), self.load(task, kind))

    def verify(self, finite: bool = False) -> None:
        """Read every file of the bank.

        Args:
            finite: refuse values that are infinite or no number too.

        Raises:
            UserError: the first one that is not what was written.
        """
        for record in self.index["tasks"]:
            for kind in record["files"]:
                for name, value in self.load(record["task"], kind).items():
                    if finite and not torch.isfinite(value).all():
                        file = self.folder / _file_name(record["task"], kind)
                        raise UserError(f"{file}: {name} holds values that are no numbers")

    def check_base(self, identity: Any) -> None:
        """Refuse another model than the one the bank was trained on.

        Args:
            identity: a `ModelIdentity`, a mapping with the same keys, or None where unknown.

        Raises:
            UserError: another architecture, or other weights.
        """
        own, other = self.index["base"], _identity(identity)
        if any(own[key] != other[key] for key in ("architecture", "weights_sha256")):
            raise UserError(
                f"{self.folder / INDEX}: this bank belongs to {_describe(own)}, the model is"
                f" {_describe(other)}: load the model the bank was trained on"
            )

    @torch.no_grad()
    def apply(self, model: Tunable, task: int, kind: Kind = "values") -> None:
        """Put a task's values into the model; `remove` takes them out again.

        Raises:
            UserError: another model than the bank's, or as `load`; the model is unchanged then.
        """
        self.check_base(model.identity)
        values = self.load(task, kind)
        for name, parameter in model.named_parameters():
            if name in values and name not in model.pretrained_values:
                model.pretrained_values[name] = parameter.detach().clone()
        model.load_values(values)

    def remove(self, model: Tunable) -> None:
        """Put the pretrained weights back, bit for bit, wherever the bank may have changed them."""
        known = model.pretrained_values
        model.load_values({n: known[n] for n in self.index["selection"] if n in known})

    def _record(self, task: int) -> dict[str, Any]:
        if not 1 <= task <= len(self):
            raise UserError(f"the bank {self.folder} has no task {task}: it holds {len(self)}")
        return self.index["tasks"][task - 1]

    def _write_index(self, index: dict[str, Any]) -> None:
        """Write another index, whose tasks are the first of this one's, or one more."""
        tasks = index["tasks"]
        rows = self._rows[: len(tasks)] + [row(record) for record in tasks[len(self._rows) :]]
        head = {key: value for key, value in index.items() if key != "tasks"}
        write_atomic(self.folder / INDEX, seal(head, tasks=rows))
        self.index, self._rows = index, rows


def _read(path: Path, most: int) -> bytes:
    """Read a file; nothing of one that is larger than `most` bytes, or a pipe or a device."""
    plain = is_file(path) or not os.path.lexists(path)  # whose absence is told
    large = is_file(path) and path.stat().st_size > most
    if plain and not large and has_holes(path):
        raise UserError(f"{path} is damaged: it is full of holes: restore the file, or train again")
    return read_bytes(path, most) if plain and not large else b""


def _file_name(task: int, kind: str) -> str:
    return f"task-{task:03d}{'' if kind == 'values' else f'-{kind}'}.safetensors"


def _identity(identity: Any) -> dict[str, str | None]:
    """Return the fields that tell models apart, from a mapping, an object or None."""
    if isinstance(identity, Mapping):
        if missing := [key for key in IDENTITY if key not in identity]:
            raise ValueError(f"a model's identity needs {', '.join(missing)}")
        return {key: identity[key] for key in IDENTITY}
    return {key: identity and getattr(identity, key) for key in IDENTITY}


def _describe(identity: Mapping[str, str | None]) -> str:
    architecture, pretrained, weights = (identity[key] or "unknown" for key in IDENTITY)
    return f"{architecture} ({pretrained}, weights {weights[:12]})"


def _prepare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if wide := [name for name, value in tensors.items() if value.dtype == torch.float64]:
        raise ValueError(f"{wide[0]} is float64, and the bank keeps float32: convert it first")
    return {
        name: value.detach()
        .to("cpu", torch.float32 if value.is_floating_point() else value.dtype)
        .clone(memory_format=torch.contiguous_format)  # of its own memory, as safetensors wants
        for name, value in tensors.items()
    }


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in tensors.items()}


def _most_bytes(selection: Mapping[str, Sequence[int]]) -> int:
    """Return how large a safetensors file of these tensors may be, in float32."""
    values = sum(map(math.prod, selection.values()))
    # In the header: the names, up to six characters for each of theirs, the sizes and the offsets.
    header = sum(256 + 6 * len(name) + 16 * len(shape) for name, shape in selection.items())
    return 4 * values + 4096 + header


def _difference(found: dict[str, list[int]], wanted: dict[str, list[int]]) -> str:
    """Say where names and shapes first differ; "" where they do not."""
    for name in [*wanted, *found]:
        if found.get(name) != wanted.get(name):
            return f"{name} is {found.get(name, 'missing')}, expected {wanted.get(name, 'no such')}"
    return ""
