"""Read features that were computed elsewhere: a NumPy `.npz` or a `.safetensors` file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from cl_clipfit.data.formats.folders import data_name
from cl_clipfit.data.source import ImageSet, Source
from cl_clipfit.errors import UserError
from cl_clipfit.storage.arrays import read_npz

NEEDED = ("train_x", "train_y", "test_x", "test_y", "text", "classnames")


def read_features(file: Path) -> Source:
    """Read a stream of features.

    Args:
        file: holds `train_x` (N, d), `train_y` (N,), `test_x` (M, d), `test_y` (M,), `text` (K, d)
            and `classnames` (K,), and optionally `logit_scale`, a number, default 100. In a
            `.safetensors` file `classnames` is a JSON list in the metadata.

    Returns:
        a source whose images are features (N, d) in fp32, unchanged from the file; names may
        repeat.

    Raises:
        UserError: it cannot be read, an entry is missing, or shapes or values do not match.
    """
    try:
        is_npz = file.suffix.lower() == ".npz"
        content = read_npz(file, (*NEEDED, "logit_scale")) if is_npz else _read_safetensors(file)
    except Exception as error:  # a damaged file may raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{file} cannot be read as .npz or .safetensors: {reason}") from error
    missing = [key for key in NEEDED if key not in content]
    if missing:
        raise UserError(f"{file}: '{missing[0]}' is missing; required: {', '.join(NEEDED)}")
    names = _names(file, content["classnames"])
    text = _matrix(file, "text", content["text"])
    if len(text) != len(names):
        raise UserError(f"{file}: text has {len(text)} rows, classnames {len(names)} names")
    train, test = (_set(file, part, content, text) for part in ("train", "test"))
    return Source(
        class_names=names,
        templates=("{}",),
        train=train,
        test=test,
        origin={
            "kind": "features",
            "name": data_name(file),
            "verified": False,
            "file": file.name,
        },
        text=text,
        logit_scale=_scale(file, content.get("logit_scale", 100.0)),
    )


def _names(file: Path, values: Any) -> tuple[str, ...]:
    if isinstance(values, np.ndarray):
        values = values.tolist() if values.ndim == 1 and values.dtype.kind == "U" else None
    if not isinstance(values, list) or not all(isinstance(v, str) and v.strip() for v in values):
        raise UserError(f"{file}: classnames must be a list of strings, (K,)")
    return tuple(values)


def _read_safetensors(file: Path) -> dict[str, Any]:
    with safetensors.safe_open(file, "pt") as archive:
        names = json.loads((archive.metadata() or {}).get("classnames", "null"))
        tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118
    # NumPy has no bfloat16
    arrays = {k: (v.float() if v.is_floating_point() else v).numpy() for k, v in tensors.items()}
    if names is not None:
        arrays["classnames"] = names
    return arrays


def _matrix(file: Path, key: str, values: Any) -> Tensor:
    values = np.asarray(values)
    if values.ndim != 2 or values.dtype.kind != "f" or not values.size:
        raise UserError(f"{file}: {key} must be floating-point (rows, d), not"
                        f" {values.dtype} {values.shape}")  # fmt: skip
    with np.errstate(over="ignore"):  # overflow of fp32 is reported below
        features = torch.from_numpy(values.astype(np.float32))
    if not features.isfinite().all() or bool((features.norm(dim=1) == 0).any()):
        raise UserError(f"{file}: {key} has a row that is all zero, or a NaN or infinite value")
    return features


def _set(file: Path, part: str, content: dict[str, Any], text: Tensor) -> ImageSet:
    features = _matrix(file, f"{part}_x", content[f"{part}_x"])
    labels = np.asarray(content[f"{part}_y"])
    if features.shape[1] != text.shape[1]:
        raise UserError(f"{file}: {part}_x has {features.shape[1]} columns, text {text.shape[1]}")
    if labels.dtype.kind not in "iu" or labels.shape != (len(features),):
        raise UserError(
            f"{file}: {part}_y must be {len(features)} integers, not {labels.dtype} {labels.shape}"
        )
    if not 0 <= labels.min() <= labels.max() < len(text):
        raise UserError(f"{file}: {part}_y must be from 0 to {len(text) - 1}")
    return ImageSet(features, torch.from_numpy(labels.astype(np.int64)))


def _scale(file: Path, value: Any) -> float:
    scale = np.asarray(value)
    if scale.size != 1 or scale.dtype.kind not in "fiu" or not 0 < float(scale.reshape(())) < 1e4:
        raise UserError(
            f"{file}: logit_scale must be a single number: the factor (100), not its logarithm"
        )
    return float(scale.reshape(()))
