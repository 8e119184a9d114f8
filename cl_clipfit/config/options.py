"""Types of settings: numbers in ranges, `Options` of a method or scenario, `Recipe` of a task."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from cl_clipfit.errors import UserError, is_file, nearest

_LONGEST_SHOWN = 200  # characters of a wrong value


def _no_bool(value: Any) -> Any:
    """Refuse booleans instead of a number; pydantic would accept True as 1."""
    if isinstance(value, bool):
        raise ValueError("input should be a number")
    return value


Number = BeforeValidator(_no_bool)
Count = Annotated[int, Number, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Number, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Number, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Number, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Number, Field(ge=0, le=1)]


class Options(BaseModel):
    """Base class of the options of a strategy or scenario, set with `--set NAME.key=value`.

    Declare fields with a type, a default, and `Field(description=..., ge=...)`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def parts(self) -> tuple[str, ...]:
        """Return the names of the scenarios that a scenario consists of; default none."""
        return ()


class ScopeOptions(Options):
    """Options of a method whose cross-entropy ranks the classes of a task, or all classes seen."""

    ce_scope: Literal["task", "seen"] = Field("task", description="classes the cross-entropy ranks")


class Recipe(Options):
    """How a task is trained."""

    epochs: Count = Field(5, description="passes over a task's data")
    batch_size: Count = Field(32, description="images per step")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="optimiser")
    lr: Positive = Field(1e-3, description="peak learning rate")
    weight_decay: NotNegative = Field(0.0, description="decoupled for adamw, L2 for sgd")
    momentum: Annotated[float, Number, Field(ge=0, lt=1)] = Field(0.9, description="of sgd")
    schedule: Literal["constant", "cosine", "epoch-cosine"] = Field(
        "cosine", description="learning rate over a task's steps, or changed once per epoch"
    )
    warmup_epochs: Annotated[int, Number, Field(ge=0, lt=2**31)] = Field(
        0, description="first epochs, at warmup_lr"
    )
    warmup_lr: Positive = Field(1e-5, description="learning rate of the warm-up epochs")
    augmentation: Literal["none", "crop", "crop-flip"] = Field(
        "none", description="random resized crop, and mirroring, of training images"
    )
    crop_scale: Annotated[float, Number, Field(gt=0, le=1)] = Field(
        0.08, description="smallest share of the area that a random crop keeps"
    )
    drop_last: bool = Field(False, description="leave out a task's last batch if it is smaller")


def read_names(value: Any) -> Any:
    """Read a list of names: a file with one name per line, or "imagenet" for its 1,000 classes."""
    if not isinstance(value, str):
        return value
    if value == "imagenet":
        from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

        return tuple(IMAGENET_CLASSNAMES)
    if not is_file(value):
        raise ValueError(
            "expected a list, as [cat, dog], a file with one name per line, or imagenet"
        )
    from cl_clipfit.config.text_files import check_size, other_lines

    try:
        check_size(Path(value), value)
        lines = Path(value).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError("the file cannot be read as text") from error
    names = tuple(name for line in lines if (name := line.strip()))
    if form := other_lines(names):
        raise ValueError(f"every line reads {form}: write a name alone on each line")
    return names


def check_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse an empty name."""
    if not all(name.strip() for name in names):
        raise ValueError("a name is empty")
    return names


Names = Annotated[tuple[str, ...], BeforeValidator(read_names), AfterValidator(check_names)]


def split_parts(value: Any) -> Any:
    """Read a list of scenarios: `A+B`, which needs no quotes in a shell, or `[A, B]`."""
    return tuple(value.split("+")) if isinstance(value, str) else value


Parts = Annotated[tuple[str, ...], BeforeValidator(split_parts)]


def make_options(cls: type[Options], values: dict[str, Any], name: str) -> Any:
    """Validate `values` as the options `cls` of the strategy or scenario `name`.

    Raises:
        UserError: an unknown key, a wrong type or a value out of range.
    """
    unknown = [key for key in values if key not in cls.model_fields]
    if unknown:
        raise UserError(
            f"--set {name}.{unknown[0]}: {name} has no option '{unknown[0]}'."
            f" {nearest(unknown[0], cls.model_fields)}"
        )
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise UserError(f"--set {explain(error, prefix=f'{name}.')}") from error


def shortened(value: Any) -> str:
    """Return a given value as text that fits in a message."""
    text = str(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def explain(error: ValidationError, prefix: str = "", names: Any = ()) -> str:
    """Return a pydantic error as one line: which setting, what is wrong, what was given."""
    sentences = []
    for detail in error.errors():
        path = [str(p) for p in detail["loc"]]
        name = path[0] if path else ""
        name = (prefix + (name.replace("_", "-") if prefix == "--" else name)).rstrip(".")
        if detail["type"] == "extra_forbidden":
            sentences.append(f"unknown setting '{name}'. {nearest(path[0], names)}")
            continue
        message = detail["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        if detail["type"] == "too_short":  # of a list
            message = f"expected at least {detail['ctx']['min_length']} value"
        given = detail["input"]
        given = f" (given: {shortened(given)})" if not isinstance(given, dict) else ""
        sentences.append(f"{name}: {message}{given}")
    return " ".join("; ".join(dict.fromkeys(sentences)).split())
