"""The bank: the trained parameters of each task, on disk, with checked hashes."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cl_clipfit.bank.delta import Delta, LazyValues, Tunable
from cl_clipfit.bank.index import (
    INDEX,
    SCHEMA,
    SEGMENT,
    Index,
    Kind,
    Segments,
    describe_identity,
    identity_of,
    segment_name,
)
from cl_clipfit.bank.tensor_files import (
    difference_of_shapes,
    file_name,
    most_bytes,
    prepared,
    shapes,
)
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

_LONGEST = 200  # characters of an index that an error repeats


class DeltaBank:
    """The trained values of every task, in a folder; made by `create` or `open`.

    `task-001.safetensors` holds the values, `task-001-host.safetensors` those of the base method of
    a merge, `task-001-statistics.safetensors` what routing needs. `index.json` lists
    sizes and SHA-256 hashes, and is written last: files it does not list do not belong to the
    bank, so that a process killed at any moment leaves the bank as it was.

    So that a task costs the same however many there are, every `SEGMENT` tasks the list moves to a
    file that is never written again, `index-0001.json`, of which `index.json` keeps the hash.

    Attributes:
        folder: of the bank.
        index: the content of `index.json`; do not change it.
    """

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder, self.index = folder, {"tasks": [], **index}
        self._segments: list[str] = []  # hash and size of each; both lists are rendered once
        self._rows: list[str] = []  # of the tasks after the segments

    @classmethod
    def create(
        cls,
        folder: Path,
        base: Mapping[str, str | None],
        strategy: str,
        templates: Sequence[Any] = ("a photo of a {}.",),
    ) -> Self:
        """Create an empty bank; an earlier bank in the folder is removed, other files are kept.

        Args:
            folder: created if it is missing.
            base: the model's architecture, pretrained and weights_sha256.
            strategy: name of the method that trains.
            templates: prompt templates of the classes, or one sequence per class.

        Raises:
            UserError: the folder cannot be written.
            ValueError: `base` lacks a key.
        """
        bank = cls(Path(folder), {})
        head = {
            "schema": SCHEMA,
            "base": identity_of(base),
            "strategy": strategy,
            "templates": list(templates),
            "selection": {},
        }
        _write_index(bank, head, 0)
        with writing(folder):
            for pattern in ("task-*.safetensors", "index-*.json"):
                for stale in bank.folder.glob(pattern):
                    stale.unlink()
        return bank

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a bank's index; `load` and `verify` check the tensors.

        Raises:
            UserError: there is no bank, or its index is damaged.
        """
        path = Path(folder) / INDEX
        index = _unsealed(path, _read(path, LARGEST))
        if (schema := index.get("schema")) != SCHEMA:
            shown = type(schema).__name__ if isinstance(schema, list | dict) else str(schema)
            raise UserError(
                f"{path} has schema {shown[:_LONGEST]}, this version reads {SCHEMA}: train again"
            )
        segments, own = index.pop("segments", []), index.get("tasks")
        _check(Segments, {"segments": segments}, path)  # anyone can seal a bank
        if isinstance(own, list):
            index["tasks"] = [*_segments_tasks(path.parent, segments), *own]
        _check(Index, index, path)
        bank = cls(Path(folder), index)
        bank._segments = [row(segment) for segment in segments]
        bank._rows = [row(record) for record in own or ()]
        return bank

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Self:
        """Open a bank that `save_pretrained` or `push_to_hub` wrote, and verify its files.

        Args:
            name: a folder, that of a run, or ORG/REPO on a model hub, which is downloaded.

        Raises:
            UserError: there is no bank, it cannot be downloaded, or a file is damaged.
        """
        from cl_clipfit.bank.sharing import find_bank

        bank = cls.open(find_bank(name))
        bank.verify(finite=True)
        return bank

    def save_pretrained(self, folder: str | Path) -> None:
        """Write an adapter folder in the manner of PEFT: a configuration, the bank, a model card.

        Raises:
            UserError: the folder holds something else, or a file of the bank is damaged.
        """
        from cl_clipfit.bank.sharing import save_bank

        save_bank(self, Path(folder))

    def push_to_hub(self, repository: str, private: bool = False) -> str:
        """Upload the adapter folder to a model hub, as ORG/REPO; return its address.

        Raises:
            UserError: the hub refuses it, or cannot be reached.
        """
        from cl_clipfit.bank.sharing import push_bank

        return push_bank(self, repository, private)

    def __len__(self) -> int:
        return len(self.index["tasks"])

    def append(
        self,
        values: Mapping[str, Tensor],
        classes: Sequence[str],
        parents: Iterable[str] = (),
        host: Mapping[str, Tensor] | None = None,
        statistics: Mapping[str, Tensor] | None = None,
        head: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add a task, atomically: if this fails, the bank is unchanged.

        Args:
            values: trained values by parameter name; half precision becomes float32, exactly. None
                if there is a head.
            classes: names of the task's classes.
            parents: its origins.
            host: values of the base method of a merge, with the same names and shapes.
            statistics: tensors with any names and shapes.
            head: the sums of a closed-form head after the task, of any types.

        Raises:
            ValueError: no values and no head, names or shapes unlike those of the first task, or
                float64, which would be rounded.
            UserError: the folder cannot be written.
        """
        task, stored, files = len(self) + 1, {"values": prepared(values)}, {}
        selection = self.index["selection"] or shapes(stored["values"])
        if not selection and not head:
            raise ValueError(f"task {task} trained no parameter: there is nothing to store")
        if host is not None:
            stored["host"] = prepared(host)
        for kind, tensors in stored.items():
            if wrong := difference_of_shapes(shapes(tensors), selection):
                raise ValueError(f"{kind} of task {task} do not fit the bank: {wrong}")
        if not selection:
            del stored["values"]
        if statistics is not None:
            stored["statistics"] = prepared(statistics)
        if head:
            stored["head"] = {name: value.cpu().contiguous() for name, value in head.items()}
        for kind, tensors in stored.items():
            name, data = file_name(task, kind), save(tensors)
            write_atomic(self.folder / name, data)
            files[kind] = {"name": name, "sha256": sha256(data), "bytes": len(data)}
        record = {"task": task, "classes": list(classes), "parents": list(parents), "files": files}
        _write_index(self, {**self.index, "selection": selection}, len(self), record)

    def keep(self, tasks: int) -> None:
        """Remove all but the first `tasks`.

        Raises:
            UserError: the bank holds fewer, or the folder cannot be written.
        """
        if len(self) < tasks:
            raise UserError(f"the bank {self.folder} holds {len(self)} tasks, not {tasks}")
        if len(self) > tasks:
            selection = self.index["selection"] if tasks else {}
            _write_index(self, {**self.index, "selection": selection}, tasks)

    def load(self, task: int, kind: Kind = "values") -> dict[str, Tensor]:
        """Read a task's tensors, on the CPU.

        Args:
            task: numbered from 1.
            kind: "values", "host", "statistics" or "head".

        Raises:
            UserError: no such task or kind, or the file is damaged.
        """
        files = self._record(task)["files"]
        if kind not in files:
            raise UserError(
                f"task {task} of the bank {self.folder} has no {kind}, only {', '.join(files)}"
            )
        path = self.folder / file_name(task, kind)
        written, selection = files[kind]["bytes"], self.index["selection"]
        free = kind in ("statistics", "head")  # of any names and shapes
        if not free and written > (most := most_bytes(selection)):
            raise UserError(
                f"{path} does not fit its index: it has {written:,} bytes, and a task's parameters"
                f" take at most {most:,}; train again"
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
            raise UserError(f"{path} is not a safetensors file: train again") from error
        if free:
            return tensors
        if wrong := difference_of_shapes(shapes(tensors), selection):
            raise UserError(f"{path} does not fit its index: {wrong}; train again")
        for name, value in tensors.items():  # anyone can seal a bank
            if value.dtype != torch.float32:
                raise UserError(f"{path}: {name} is {value.dtype}, and a bank stores float32")
        return {name: tensors[name] for name in selection}  # in the order of the model

    def lazy(self, task: int, kind: Kind = "values") -> "LazyValues":
        """Return a task's tensors, each read when it is asked for; verified now; errors as `load`.

        So a merge of many whole models needs the memory of one tensor of each.
        """
        self.load(task, kind)  # lets go of it again
        return LazyValues(self.folder / file_name(task, kind), list(self.index["selection"]))

    def delta(self, task: int, kind: Kind = "values") -> Delta:
        """Return the parameters that a task (from 1) trained; errors as `load`."""
        record = self._record(task)
        return Delta(task, list(record["classes"]), list(record["parents"]), self.load(task, kind))

    def verify(self, finite: bool = False) -> None:
        """Read every file of the bank.

        Args:
            finite: also refuse NaN and infinite values.

        Raises:
            UserError: a file is damaged, or holds values that `finite` refuses.
        """
        for record in self.index["tasks"]:
            for kind in record["files"]:
                for name, value in self.load(record["task"], kind).items():
                    if finite and not torch.isfinite(value).all():
                        file = self.folder / file_name(record["task"], kind)
                        raise UserError(f"{file}: {name} holds NaN or infinite values")

    def check_base(self, identity: Any) -> None:
        """Refuse a model other than the one the bank was trained on.

        Args:
            identity: a `ModelIdentity`, a mapping with the same keys, or None if unknown.

        Raises:
            UserError: the architecture or the weights differ.
        """
        base, model = self.index["base"], identity_of(identity)
        if any(base[key] != model[key] for key in ("architecture", "weights_sha256")):
            raise UserError(
                f"{self.folder / INDEX}: this bank belongs to {describe_identity(base)}, the model"
                f" is {describe_identity(model)}: load the model the bank was trained on"
            )

    @torch.no_grad()
    def apply(self, model: Tunable, task: int, kind: Kind = "values") -> None:
        """Load a task's values into the model; `remove` restores the pretrained ones.

        Raises:
            UserError: the model is not the bank's, or as `load`; the model is then unchanged.
        """
        self.check_base(model.identity)
        values = self.load(task, kind)
        for name, parameter in model.named_parameters():
            if name in values and name not in model.pretrained_values:
                model.pretrained_values[name] = parameter.detach().clone()
        model.load_values(values)

    def remove(self, model: Tunable) -> None:
        """Restore the pretrained values, bit for bit, of all parameters in the bank."""
        pretrained = model.pretrained_values
        names = [name for name in self.index["selection"] if name in pretrained]
        model.load_values({name: pretrained[name] for name in names})

    def _record(self, task: int) -> dict[str, Any]:
        if not 1 <= task <= len(self):
            raise UserError(f"the bank {self.folder} has no task {task}: it holds {len(self)}")
        return self.index["tasks"][task - 1]

    def index_files(self) -> list[Path]:
        """Return the files of the index, `index.json` last."""
        count = len(self._segments)
        segments = [self.folder / segment_name(number + 1) for number in range(count)]
        return [*segments, self.folder / INDEX]


def _write_index(
    bank: DeltaBank, index: dict[str, Any], kept: int, added: dict[str, Any] | None = None
) -> None:
    """Write the index of the first `kept` tasks, and of one more; then it is the bank's.

    A full segment is written before `index.json`, which lists it: until then it does not exist.
    """
    tasks = bank.index["tasks"]
    whole = min(len(bank._segments), kept // SEGMENT)
    segments, rows = bank._segments[:whole], bank._rows[: kept - whole * SEGMENT]
    if whole < len(bank._segments):  # a segment is cut
        rows = [row(record) for record in tasks[whole * SEGMENT : kept]]
    if added is not None:
        rows = [*rows, row(added)]
    if len(rows) == SEGMENT:
        data = seal({"first": whole * SEGMENT + 1}, tasks=rows)
        write_atomic(bank.folder / segment_name(whole + 1), data)
        segments, rows = [*segments, row({"sha256": sha256(data), "bytes": len(data)})], []
    head = {key: value for key, value in index.items() if key != "tasks"}
    listed = {"segments": segments} if segments else {}
    write_atomic(bank.folder / INDEX, seal(head, **listed, tasks=rows))
    del tasks[kept:]  # in place: a copy would take longer with every task
    if added is not None:
        tasks.append(added)
    bank.index, bank._segments, bank._rows = {**head, "tasks": tasks}, segments, rows


def _unsealed(path: Path, data: bytes) -> dict[str, Any]:
    try:
        return unseal(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: restore the file, or train again") from error


def _check(model: type[BaseModel], value: dict[str, Any], path: Path) -> None:
    """Refuse a value that is not what a schema says."""
    try:
        model.model_validate(value)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))[:_LONGEST]
        raise UserError(f"{path} is not the index of a bank: {where} is wrong") from error


def _segments_tasks(folder: Path, segments: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the tasks that the segments of an index list."""
    tasks: list[dict[str, Any]] = []
    for number, segment in enumerate(segments, 1):
        path = folder / segment_name(number)
        data = _read(path, segment["bytes"])
        listed = _unsealed(path, data).get("tasks")
        right = sha256(data) == segment["sha256"]
        if not right or not isinstance(listed, list) or len(listed) != SEGMENT:
            raise UserError(f"{path} is damaged: restore the file, or train again")
        tasks += listed
    return tasks


def _read(path: Path, most: int) -> bytes:
    """Read a file; return b"" if it is larger than `most` bytes, or a pipe or a device."""
    plain = is_file(path) or not os.path.lexists(path)  # `read_bytes` reports that it is missing
    large = is_file(path) and path.stat().st_size > most
    if plain and not large and has_holes(path):
        raise UserError(f"{path} is damaged, it is mostly holes: restore the file, or train again")
    return read_bytes(path, most) if plain and not large else b""
