"""`state.safetensors`: what a finished run needs to learn further tasks, beside its bank."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cl_clipfit.errors import UserError, is_file
from cl_clipfit.storage.checkpoints import LARGEST_STATE, as_bytes, from_bytes
from cl_clipfit.storage.files import read_bytes, write_atomic
from cl_clipfit.storage.manifest import is_as_written
from cl_clipfit.storage.run_folder import STATE


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a run into its folder; dictionaries are sorted by their keys.

    Raises:
        UserError: the folder cannot be written.
        UnsupportedError: the state contains a value that a checkpoint cannot hold.
    """
    write_atomic(folder / STATE, as_bytes(_sorted(dict(state)), {}))


def read_state(folder: Path) -> dict[str, Any]:
    """Read the state of a finished run.

    Raises:
        UserError: there is none, or it is not what the run wrote.
    """
    file = folder / STATE
    if not is_file(file):
        raise UserError(f"{folder}: the run keeps no state to continue from: train it again")
    if not is_as_written(folder, STATE):
        raise UserError(f"{file} is damaged: restore the file, or train again")
    return from_bytes(read_bytes(file, LARGEST_STATE), file)


def _sorted(value: Any) -> Any:
    """Return a value whose dictionaries are sorted: a resumed run fills them in another order."""
    if type(value) is not dict:
        return value
    return {key: _sorted(value[key]) for key in sorted(value, key=lambda k: (type(k).__name__, k))}
