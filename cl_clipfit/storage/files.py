"""Atomic writes, checked reads, and errors of the operating system as messages."""

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cl_clipfit.errors import UserError

LARGEST = 256 << 20  # bytes of a file that is read at once and does not contain weights


def writing(path: Path) -> AbstractContextManager[None]:
    """Convert an `OSError` in a `with` block to "cannot write PATH: reason"."""
    return _explaining("write", path)


def reading(path: Path | None = None) -> AbstractContextManager[None]:
    """Convert an `OSError` in a `with` block to "cannot read PATH: reason".

    Args:
        path: of the file; by default, the file that the error names.
    """
    return _explaining("read", path)


def removing(path: Path) -> AbstractContextManager[None]:
    """Convert an `OSError` in a `with` block to "cannot remove PATH: reason"."""
    return _explaining("remove", path)


@contextlib.contextmanager
def _explaining(verb: str, path: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot {verb} {path or error.filename}: {reason}") from error


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file atomically, with the permissions of the umask.

    Raises:
        UserError: the folder cannot be written.
    """
    data = data.encode() if isinstance(data, str) else data
    # `tempfile` would leave the file with mode 0600; `open` applies the umask.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


_TEMPORARY = re.compile(r"\.[^.]+\..+\.[a-z0-9_]{8}")  # does not match a lock: "..lock.x"


def is_temporary(name: str) -> bool:
    """Return whether a file's name is one that `write_atomic` uses while it writes."""
    return _TEMPORARY.fullmatch(name) is not None


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder survive a power failure, if the system supports it."""
    with contextlib.suppress(OSError):  # some file systems refuse
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """Read a whole file.

    Args:
        path: the file.
        most: the largest accepted size in bytes.

    Raises:
        UserError: it is missing, unreadable, too large, or not a regular file (a pipe may never
            end).
    """
    with reading(path):
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path} is not a regular file: restore the file")
            size = f"{path} has {status.st_size:,} bytes"
            if status.st_size > most:
                raise UserError(f"{size}, more than the {most:,} that are accepted")
            return path.read_bytes()
        except MemoryError as error:
            raise UserError(f"{size}, which do not fit in memory") from error
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing: restore the file, or train again") from error


def has_holes(path: Path) -> bool:
    """Return whether a large file is mostly holes: a sparse file can have any size."""
    with contextlib.suppress(OSError):  # reading the file reports the error
        status = path.stat()
        blocks = getattr(status, "st_blocks", None)
        if blocks is None or status.st_size <= LARGEST or blocks * 512 >= status.st_size / 2:
            return False
        if not hasattr(os, "SEEK_HOLE"):
            return True
        with path.open("rb") as file:  # some network file systems do not count blocks
            return os.lseek(file.fileno(), 0, os.SEEK_HOLE) < status.st_size
    return False


def sha256(data: bytes) -> str:
    """Return the SHA-256 hash in hex digits."""
    return hashlib.sha256(data).hexdigest()


_END = "\n}\n"
_SEAL = re.compile(rb',\n "sha256": "([0-9a-f]{64})"\n}\n')


def row(value: dict[str, Any]) -> str:
    """Render a record for `seal`, on one line."""
    return json.dumps(value, allow_nan=False)


def seal(value: dict[str, Any], **rows: Sequence[str]) -> bytes:
    """Render JSON that contains its own hash, so that `unseal` detects any change to any byte.

    Args:
        value: not empty.
        rows: lists of records, rendered by `row`, so that a growing list is not rendered again
            each time.
    """
    text = json.dumps(value, indent=1, allow_nan=False).removesuffix("\n}")
    for key, records in rows.items():
        lines = ",\n  ".join(records)
        text += f",\n {json.dumps(key)}: " + (f"[\n  {lines}\n ]" if records else "[]")
    digest = sha256((text + _END).encode())
    return f'{text},\n "sha256": "{digest}"{_END}'.encode()


def unseal(data: bytes) -> dict[str, Any]:
    """Invert `seal`, and check the hash.

    Raises:
        ValueError: the data differ from what `seal` returned.
    """
    start = data.rfind(b",\n")
    tail = _SEAL.fullmatch(data, max(start, 0))
    if tail is None:
        raise ValueError("no hash")
    if sha256(data[:start] + _END.encode()) != tail[1].decode():
        raise ValueError("the hash does not match")
    value: dict[str, Any] = json.loads(data)
    del value["sha256"]
    return value


def render_json(value: Any) -> bytes:
    """Return strict JSON (no NaN), one value per line."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON; errors as `write_atomic`."""
    write_atomic(path, render_json(value))


def write_yaml(path: Path, value: dict[str, Any]) -> None:
    """Write settings as YAML, in the order given."""
    import yaml

    class _WithoutAliases(yaml.SafeDumper):
        """Writes out a list that two settings share: readers refuse aliases."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    write_atomic(
        path, yaml.dump(value, Dumper=_WithoutAliases, sort_keys=False, allow_unicode=True)
    )


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return CSV; None is an empty cell, floats have 4 decimals."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(
            ["" if v is None else f"{v:z.4f}" if isinstance(v, float) else v for v in row]
        )
    return out.getvalue()
