"""The index of a bank: its schema, and the identity of the model it belongs to."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cl_clipfit.storage.files import LARGEST

SCHEMA = 1
INDEX = "index.json"
SEGMENT = 500  # tasks of a segment: an index of few tasks is one file
IDENTITY = ("architecture", "pretrained", "weights_sha256")
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
