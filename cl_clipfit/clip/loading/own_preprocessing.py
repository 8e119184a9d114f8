"""The preprocessing that the configuration of a model of one's own may hold."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from cl_clipfit.config.options import explain
from cl_clipfit.errors import UserError

_Positive = Annotated[FiniteFloat, Field(gt=0)]


class _Preprocessing(BaseModel):
    """The part of open_clip's preprocessing that does not follow from the image tower."""

    mode: Literal["RGB"] | None = None
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] | None = None
    std: tuple[_Positive, _Positive, _Positive] | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    resize_mode: Literal["shortest", "longest", "squash"] | None = None
    fill_color: Annotated[int, Field(ge=0, le=255)] | None = None


def read_preprocessing(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return the preprocessing in a configuration; empty if it holds none.

    Raises:
        UserError: a value is of the wrong type or out of range.
    """
    text = json.dumps(config.get("preprocess_cfg") or {})
    try:
        settings = _Preprocessing.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise UserError(f"{file}: preprocess_cfg: {explain(error)}") from error
    return settings.model_dump(exclude_none=True)
