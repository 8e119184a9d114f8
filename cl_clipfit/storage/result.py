"""Read and validate `result.json`: complete, of this version, with the fields that a run writes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cl_clipfit.errors import UserError, is_file
from cl_clipfit.storage.files import read_bytes

SCHEMA = 1
RESULT = "result.json"
Content = dict[str, Any]  # of a `result.json`
Values = list[float | None]
Matrix = Annotated[list[Values], Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]


class _Section(BaseModel):
    # Additional keys are kept: methods and later versions add their own.
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Joint(_Section):
    """Accuracies in the joint label space, one per row of the tables."""

    stream: Values
    probes: dict[str, Values]
    zero_shot: dict[str, Values]


class _Board(_Section):
    """Tables of one model over a stream, and the metrics computed from them."""

    accuracy_matrix: Matrix
    all_classes_matrix: Matrix
    task_aware_matrix: Matrix
    metrics: dict[str, float | None]
    curves: dict[str, Values]
    probes: dict[str, Values]
    joint: _Joint | None = None  # runs of 0.1.0 and without probes have none

    @model_validator(mode="after")
    def _check_tables(self) -> Self:
        for table in (self.accuracy_matrix, self.all_classes_matrix, self.task_aware_matrix):
            if len({len(row) for row in table}) != 1 or len(table) != len(self.accuracy_matrix):
                raise ValueError("tables need one row per task, all of the same length")
        later = {"joint_accuracy", "joint_retention"} & {*self.curves}
        for name in ("accuracy", "forgetting", "retention", *sorted(later)):
            if len(self.curves.get(name, [])) != len(self.accuracy_matrix):
                raise ValueError(f"the curve {name} needs one value per row of the tables")
        return self


class _Task(_Section):
    classes: list[str]
    train_samples: Count
    test_samples: Count


class _Kept(_Section):
    """What the method keeps from old tasks, and its size after each task."""

    what: str
    bytes: list[Count]


class _Merge(_Section):
    tasks: list[dict[str, Any]]
    compared: dict[str, _Board]


class _Model(_Section):
    architecture: str
    pretrained: str
    weights_sha256: str
    parameters: Count
    trainable_parameters: Count


class _Origin(_Section):
    sha256: str


class _Merged(_Section):
    """The origin of the weights of a run that was merged, not trained."""

    model_config = ConfigDict(strict=True, extra="forbid")
    method: str
    settings: dict[str, Any]
    run: str
    bank: str


class _Host(_Section):
    name: str
    options: dict[str, Any]


class _Result(_Board):
    digest: str
    scenario: str
    protocol: str
    strategy: str
    label: str
    seed: int
    scored_on: Literal["test images", "validation images"]
    recipe: dict[str, Any] | None
    options: dict[str, Any]
    host: _Host | None
    model: _Model
    data: _Origin
    tasks: Annotated[list[_Task], Field(min_length=1)]
    class_order: list[int]
    change_by_layer: list[dict[str, float]]
    kept: _Kept | None = None  # runs of 0.1.0 have none
    merge: _Merge | None
    timings: dict[str, list[float]]
    peak_memory_bytes: Count
    warnings: list[str]
    merged: _Merged | None = None

    @model_validator(mode="after")
    def _check_zero_shot(self) -> Self:
        if len(self.curves.get("zero_shot", [])) < len(self.accuracy_matrix):
            raise ValueError("the curve zero_shot needs one value per row of the tables")
        return self


@dataclass(frozen=True)
class Result:
    """A complete run.

    Attributes:
        path: its folder.
        content: content of `result.json`.
    """

    path: Path
    content: Content

    @property
    def label(self) -> str:
        """Return the strategy as the user named it, such as "full:ce_scope=task"."""
        return self.content["label"]

    @property
    def seed(self) -> int:
        """Return the run's seed."""
        return self.content["seed"]

    @property
    def metrics(self) -> Mapping[str, float | None]:
        """Return the metrics by name, in percent; None if undefined."""
        return self.content["metrics"]

    @property
    def accuracy_matrix(self) -> Sequence[Sequence[float | None]]:
        """Return accuracy in percent among the classes seen: row t after task t, a column per task.

        Row 0 is before any training.
        """
        return self.content["accuracy_matrix"]

    @property
    def curves(self) -> Mapping[str, Sequence[float | None]]:
        """Return the curves by name, a value after every task."""
        return self.content["curves"]


def read_result(file: Path) -> dict[str, Any] | None:
    """Return the `result.json` of a complete run, or None if there is none.

    Raises:
        UserError: the result cannot be read, has another schema, or is not valid.
    """
    if not is_file(file):
        return None
    try:
        result = json.loads(read_bytes(file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: repeat the run with --fresh") from error
    if not isinstance(result, dict) or result.get("complete") is not True:
        return None
    if result.get("schema") != SCHEMA:
        raise UserError(
            f"{file} has schema {result.get('schema')}, this version reads {SCHEMA}:"
            " repeat the run with --fresh"
        )
    try:
        _Result.model_validate(result)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its content"
        raise UserError(
            f"{file} is not what a run writes: {where}: {first['msg']}: repeat the run with --fresh"
        ) from error
    return result
