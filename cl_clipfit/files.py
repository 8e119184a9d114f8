"""Files that appear whole or not at all, and are read as they were written or not at all."""

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from cl_clipfit.errors import UserError


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that it appears whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    data = data.encode() if isinstance(data, str) else data
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp's 0600 would make a shared folder unreadable
        Path(temporary).replace(path)
    except BaseException as error:
        if temporary:
            with contextlib.suppress(OSError):
                Path(temporary).unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder survive a power cut, where the system can do that at all."""
    with contextlib.suppress(OSError):  # Windows opens no folders, some file systems refuse
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_bytes(path: Path) -> bytes:
    """Read a file.

    Raises:
        UserError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: restore the file, or train again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def sha256(data: bytes) -> str:
    """Return the SHA-256 hash in hex digits."""
    return hashlib.sha256(data).hexdigest()


def _render(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def seal(value: dict[str, Any]) -> bytes:
    """Render JSON that holds its own hash: `unseal` notices any change of any byte."""
    return _render({**value, "sha256": sha256(_render(value))})


def unseal(data: bytes) -> dict[str, Any]:
    """Return what was given to `seal`.

    Raises:
        ValueError: the data are not, byte for byte, what `seal` returned.
    """
    value = json.loads(data)
    if not isinstance(value, dict) or "sha256" not in value:
        raise ValueError("no hash")
    del value["sha256"]
    if seal(value) != data:  # a changed blank would have parsed to the same
        raise ValueError("other bytes than those written")
    return value
