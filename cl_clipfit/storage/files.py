"""Files that appear whole or not at all, and are read as they were written or not at all."""

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
from typing import TYPE_CHECKING, Any

from cl_clipfit.errors import UserError

if TYPE_CHECKING:
    pass

LARGEST = 256 << 20  # bytes of a file that is read whole and is none of weights


def writing(path: Path) -> AbstractContextManager[None]:
    """Turn an error of the operating system in a `with` block into "cannot write PATH: why"."""
    return _explaining("write", path)


def reading(path: Path | None = None) -> AbstractContextManager[None]:
    """Turn an error of the operating system in a `with` block into "cannot read PATH: why".

    Args:
        path: what is read; default: the file that the error names.
    """
    return _explaining("read", path)


def removing(path: Path) -> AbstractContextManager[None]:
    """Turn an error of the operating system in a `with` block into "cannot remove PATH: why"."""
    return _explaining("remove", path)


@contextlib.contextmanager
def _explaining(verb: str, path: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot {verb} {path or error.filename}: {reason}") from error


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that it appears whole or not at all, with the permissions of the umask.

    Raises:
        UserError: the folder cannot be written.
    """
    data = data.encode() if isinstance(data, str) else data
    # `tempfile` would make the file 0600 for good: whoever opens it plainly gets the umask's mode.
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


_TEMPORARY = re.compile(r"\.[^.]+\..+\.[a-z0-9_]{8}")  # none of a lock: "..lock.x"


def is_temporary(name: str) -> bool:
    """Tell whether a file's name is one that `write_atomic` gives a file until it is whole."""
    return _TEMPORARY.fullmatch(name) is not None


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder survive a power cut, where the system can do that at all."""
    with contextlib.suppress(OSError):  # Windows opens no folders, some file systems refuse
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """Read a file whole.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        UserError: it is missing, cannot be read, is larger than that or than the memory, or is no
            file: a pipe never ends.
    """
    with reading(path):
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path} is no file: put back what was there")
            size = f"{path} has {status.st_size:,} bytes"
            if status.st_size > most:
                raise UserError(f"{size}, and {most:,} at most are read")
            return path.read_bytes()
        except MemoryError as error:
            raise UserError(f"{size}, which memory cannot hold") from error
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing: restore the file, or train again") from error


def has_holes(path: Path) -> bool:
    """Tell whether most of a large file was never written: such a one can be of any size."""
    with contextlib.suppress(OSError):  # it is told by whoever reads the file
        status = path.stat()
        blocks = getattr(status, "st_blocks", None)
        if blocks is None or status.st_size <= LARGEST or blocks * 512 >= status.st_size / 2:
            return False
        if not hasattr(os, "SEEK_HOLE"):
            return True
        with path.open("rb") as file:  # some file systems of networks count no blocks at all
            return os.lseek(file.fileno(), 0, os.SEEK_HOLE) < status.st_size
    return False


def sha256(data: bytes) -> str:
    """Return the SHA-256 hash in hex digits."""
    return hashlib.sha256(data).hexdigest()


_END = "\n}\n"
_SEAL = re.compile(rb',\n "sha256": "([0-9a-f]{64})"\n}\n')


def row(value: dict[str, Any]) -> str:
    """Render a record for `seal`, on a line of its own."""
    return json.dumps(value, allow_nan=False)


def seal(value: dict[str, Any], **rows: Sequence[str]) -> bytes:
    """Render JSON that holds its own hash: `unseal` notices any change of any byte.

    Args:
        value: not empty.
        rows: lists of records, rendered by `row`, so that a list that gets longer and longer is
            not rendered as a whole each time.
    """
    text = json.dumps(value, indent=1, allow_nan=False).removesuffix("\n}")
    for key, records in rows.items():
        lines = ",\n  ".join(records)
        text += f",\n {json.dumps(key)}: " + (f"[\n  {lines}\n ]" if records else "[]")
    digest = sha256((text + _END).encode())
    return f'{text},\n "sha256": "{digest}"{_END}'.encode()


def unseal(data: bytes) -> dict[str, Any]:
    """Return what was given to `seal`.

    Raises:
        ValueError: the data are not, byte for byte, what `seal` returned.
    """
    start = data.rfind(b",\n")
    tail = _SEAL.fullmatch(data, max(start, 0))
    if tail is None:
        raise ValueError("no hash")
    if sha256(data[:start] + _END.encode()) != tail[1].decode():
        raise ValueError("other bytes than those written")
    value: dict[str, Any] = json.loads(data)
    del value["sha256"]
    return value


def render_json(value: Any) -> bytes:
    """Return strict JSON (no NaN), one value a line."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON; errors as `write_atomic`."""
    write_atomic(path, render_json(value))


def write_yaml(path: Path, value: dict[str, Any]) -> None:
    """Write settings as YAML, in the order given."""
    import yaml

    write_atomic(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return CSV; None is an empty cell, floats have 4 decimals."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(
            ["" if v is None else f"{v:.4f}" if isinstance(v, float) else v for v in row]
        )
    return out.getvalue()
