"""Models that open_clip does not list: a folder, or a configuration and a file of weights."""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip.factory

from cl_clipfit.clip.loading.names import LOCAL
from cl_clipfit.clip.loading.untrusted_config import check_config
from cl_clipfit.errors import UserError, is_file, listed

OWN = "own-model"  # the name of one such architecture while open_clip builds it
CONFIG = "open_clip_config.json"
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
_STEMS = ("open_clip_model", "open_clip_pytorch_model", "model", "pytorch_model")  # of hubs


@dataclass(frozen=True)
class OwnModel:
    """The files of a model with an architecture of its own.

    Attributes:
        label: name to display.
        config: file, in the form of open_clip's own `model_configs` or of a hub.
        weights: file.
        tokenizer: folder with the files of a tokenizer that the configuration asks for; None to
            get it by its name.
    """

    label: str
    config: Path
    weights: Path
    tokenizer: Path | None = None


def find_own_model(name: str, weights: str) -> OwnModel:
    """Return the files of `local-dir:FOLDER` or `CONFIG.json:WEIGHTS`.

    Raises:
        UserError: one of them is missing, or it is unclear which one is meant.
    """
    if not name.startswith(LOCAL):
        if not weights:
            raise UserError(f"--model {name} needs weights: {name}:FILE")
        for file in (name, weights):
            if not is_file(file):
                raise UserError(f"--model {name}:{weights}: {file} does not exist")
        config = Path(name).absolute()
        label = config.parent.name if config.name == CONFIG else config.stem
        return OwnModel(label, Path(name), Path(weights))
    folder = Path(name.removeprefix(LOCAL))
    if not is_file(folder, or_folder=True) or is_file(folder):
        raise UserError(f"--model {name}: there is no such folder")
    config = _config_in(folder)
    return OwnModel(folder.absolute().name, config, _weights_in(folder, config), folder)


def _config_in(folder: Path) -> Path:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".json")
    named = [file for file in files if file.name == CONFIG] or files
    if len(named) != 1:
        raise UserError(f"--model {LOCAL}{folder}: the folder holds no {CONFIG}")
    return named[0]


def _weights_in(folder: Path, config: Path) -> Path:
    """Return the only file of weights, or that of the name which open_clip looks for first."""
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and is_file(f))
    if not files:
        raise UserError(f"{folder} holds no weights: expected {', '.join(SUFFIXES)}")
    usual = [
        file
        for stem in _STEMS
        for suffix in SUFFIXES
        for file in files
        if file.name.lower() == f"{stem}{suffix}"
    ]
    if not usual and len(files) > 1:
        names = listed(file.name for file in files)
        raise UserError(f"{folder} holds weights {names}: choose one, --model {config}:FILE")
    return (usual or files)[0]


def read_own_model(model: OwnModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the architecture of a model, and its preprocessing.

    Raises:
        UserError: the configuration is refused; see `check_config`.
    """
    config = check_config(model.config, model.weights.stat().st_size)
    architecture = config["model_cfg"]
    if model.tokenizer and architecture["text_cfg"].get("hf_tokenizer_name"):
        architecture["text_cfg"]["hf_tokenizer_name"] = str(model.tokenizer.absolute())
    # Only here: towers of open_clip's list then need no pydantic, as benchmarks on a bare machine.
    from cl_clipfit.clip.loading.own_preprocessing import read_preprocessing

    return architecture, read_preprocessing(config, model.config)


@contextlib.contextmanager
def building(architecture: dict[str, Any] | None) -> Iterator[None]:
    """Let open_clip build an architecture as `OWN` in a `with` block; it keeps what it is told."""

    def get_model_config(name: str) -> dict[str, Any] | None:
        return copy.deepcopy(architecture) if name == OWN else original(name)

    original, open_clip.factory.get_model_config = (
        open_clip.factory.get_model_config,
        get_model_config,
    )
    try:
        yield
    finally:
        open_clip.factory.get_model_config = original
