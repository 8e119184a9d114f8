"""The index of a bank: its schema, its files, and the identity of the model it belongs to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cl_clipfit.bank.tensor_files import read_up_to
from cl_clipfit.errors import UserError
from cl_clipfit.storage.files import LARGEST, row, seal, sha256, unseal, write_atomic

SCHEMA = 1
INDEX = "index.json"
SEGMENT = 500  # tasks of a segment: an index of few tasks is one file
IDENTITY = ("architecture", "pretrained", "weights_sha256")
_LONGEST = 200  # characters of an index that an error repeats
Kind = Literal["values", "host", "statistics", "head"]
_LARGEST_SIZE = 1 << 40  # of a dimension, and of a file in bytes: far above any model
_MOST_DIMENSIONS = 16
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


class _Segment(_Strict):
    sha256: str
    bytes: Annotated[int, Field(ge=0, le=LARGEST)]


class Segments(_Strict):
    """The part of `index.json` that lists the segments before its own tasks, in their order."""

    segments: list[_Segment]


class Index(_Strict):
    """The schema of `index.json`, once the tasks of its segments are among its own."""

    base: _Base
    strategy: str
    templates: list[str | list[str]]
    selection: dict[str, _Shape]
    tasks: list[_Record]

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, tasks: list[_Record]) -> list[_Record]:
        if any(t.task != number for number, t in enumerate(tasks, 1)):
            raise ValueError("tasks must be numbered from 1")
        if not all(t.files.keys() & {"values", "head"} for t in tasks):
            raise ValueError("tasks must have values or a head")
        return tasks


def segment_name(number: int) -> str:
    """Return the name of the file of the n-th segment, from 1.

    Example:
        >>> segment_name(3)
        'index-0003.json'
    """
    return f"{INDEX.removesuffix('.json')}-{number:04d}.json"


def identity_of(identity: Any) -> dict[str, str | None]:
    """Return the fields that identify a model, from a mapping, an object or None."""
    if isinstance(identity, Mapping):
        if missing := [key for key in IDENTITY if key not in identity]:
            raise ValueError(f"a model's identity needs {', '.join(missing)}")
        return {key: identity[key] for key in IDENTITY}
    return {key: identity and getattr(identity, key) for key in IDENTITY}


def describe_identity(identity: Mapping[str, str | None]) -> str:
    """Return architecture, tag and the beginning of the weights' hash, for a message."""
    architecture, pretrained, weights = (identity[key] or "unknown" for key in IDENTITY)
    return f"{architecture} ({pretrained}, weights {weights[:12]})"


class IndexFile:
    """What a bank holds, in memory and on disk.

    So that a task costs the same however many there are, every `SEGMENT` tasks the list moves to a
    file that is never written again, `index-0001.json`, of which `index.json` keeps the hash.

    Attributes:
        folder: of the bank.
        content: the head of `index.json`, and under "tasks" those of the segments and its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.content: dict[str, Any] = {"tasks": []}
        self._segments: list[str] = []  # hash and size of each; both lists are rendered once
        self._rows: list[str] = []  # of the tasks after the segments

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read and check the index of a bank.

        Raises:
            UserError: there is no bank, or its index is damaged.
        """
        path = folder / INDEX
        content = _unsealed(path, read_up_to(path, LARGEST))
        if (schema := content.get("schema")) != SCHEMA:
            shown = type(schema).__name__ if isinstance(schema, list | dict) else str(schema)
            raise UserError(
                f"{path} has schema {shown[:_LONGEST]}, this version reads {SCHEMA}: train again"
            )
        segments, own = content.pop("segments", []), content.get("tasks")
        _check(Segments, {"segments": segments}, path)  # anyone can seal a bank
        if isinstance(own, list):
            content["tasks"] = [*_tasks_of_segments(folder, segments), *own]
        _check(Index, content, path)
        index = cls(folder)
        index.content = content
        index._segments = [row(segment) for segment in segments]
        index._rows = [row(record) for record in own or ()]
        return index

    def write(
        self, head: Mapping[str, Any], kept: int, added: dict[str, Any] | None = None
    ) -> None:
        """Write an index of the first `kept` tasks, and of one more; then it is the content.

        A full segment is written before `index.json`, which lists it: until then it does not exist.

        Raises:
            UserError: the folder cannot be written.
        """
        tasks = self.content["tasks"]
        whole = min(len(self._segments), kept // SEGMENT)
        segments, rows = self._segments[:whole], self._rows[: kept - whole * SEGMENT]
        if whole < len(self._segments):  # a segment is cut
            rows = [row(record) for record in tasks[whole * SEGMENT : kept]]
        if added is not None:
            rows = [*rows, row(added)]
        if len(rows) == SEGMENT:
            data = seal({"first": whole * SEGMENT + 1}, tasks=rows)
            write_atomic(self.folder / segment_name(whole + 1), data)
            segments, rows = [*segments, row({"sha256": sha256(data), "bytes": len(data)})], []
        head = {key: value for key, value in head.items() if key != "tasks"}
        listed = {"segments": segments} if segments else {}
        write_atomic(self.folder / INDEX, seal(head, **listed, tasks=rows))
        del tasks[kept:]  # in place: a copy would take longer with every task
        if added is not None:
            tasks.append(added)
        self.content, self._segments, self._rows = {**head, "tasks": tasks}, segments, rows

    def paths(self) -> list[Path]:
        """Return the files of the index, `index.json` last."""
        count = len(self._segments)
        segments = [self.folder / segment_name(number + 1) for number in range(count)]
        return [*segments, self.folder / INDEX]


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


def _tasks_of_segments(folder: Path, segments: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the tasks that the segments of an index list."""
    tasks: list[dict[str, Any]] = []
    for number, segment in enumerate(segments, 1):
        path = folder / segment_name(number)
        data = read_up_to(path, segment["bytes"])
        listed = _unsealed(path, data).get("tasks")
        right = sha256(data) == segment["sha256"]
        if not right or not isinstance(listed, list) or len(listed) != SEGMENT:
            raise UserError(f"{path} is damaged: restore the file, or train again")
        tasks += listed
    return tasks
