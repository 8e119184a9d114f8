"""One routine for all downloads: progress, resume, checksum, complete files only."""

import hashlib
import http.client
import os
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from filelock import FileLock

from cl_clipfit.data.source import DataRequest
from cl_clipfit.errors import UserError, is_file
from cl_clipfit.storage.files import reading

CHUNK = 1 << 20
TIMEOUT_SECONDS = 20
PAUSES = (1.0, 4.0)  # seconds before each further attempt, if the last one brought nothing
BUSY = 429


class DownloadError(UserError):
    """A download failed; the message gives the URL and the place for a copy."""


class _UnreachableError(Exception):
    """The host cannot be reached, refuses the request, or sends a different file."""


class _DiskError(Exception):
    """Received data cannot be written."""


def cache_folder() -> Path:
    """Return the folder for data sets: CL_CLIPFIT_DATA, or else a folder in the user's cache.

    Raises:
        UserError: it is in the home folder, and the user has none.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.environ.get("CL_CLIPFIT_DATA") or f"{cache}/cl_clipfit"
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{folder}: there is no home folder: set CL_CLIPFIT_DATA to a folder for data sets"
        ) from error


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file.

    Raises:
        UserError: it cannot be read.
    """
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def full_checksum(checksum: str) -> str:
    """Return "ALGORITHM:HEX" in lower case; a checksum without a prefix is a SHA-256.

    Example:
        >>> full_checksum("MD5:00ff")
        'md5:00ff'
    """
    return (checksum if ":" in checksum else f"sha256:{checksum}").lower()


def file_checksum(path: Path, like: str = "") -> str:
    """Return "ALGORITHM:HEX" of a file, with the algorithm of another checksum; default SHA-256.

    Raises:
        UserError: it cannot be read.
    """
    algorithm = full_checksum(like).partition(":")[0]
    return f"{algorithm}:{file_hash(path, algorithm)}"


def download(url: str, target: Path, checksum: str, request: DataRequest) -> Path:
    """Download a file unless it exists; an interrupted download is resumed.

    The file appears under its name once it is complete and its checksum is correct. Two processes
    may request the same file: one downloads it, the other waits.

    Args:
        url: address of the file.
        target: path to write to.
        checksum: "sha256:HEX", "md5:HEX", the bare digits of a SHA-256, or "" if none is published.
        request: notified of progress and retries.

    Raises:
        DownloadError: the host cannot be reached, refuses, or sends a different file. The message
            gives the URL and the place for a copy downloaded elsewhere.
        UserError: the file cannot be written.
    """
    if is_file(target):
        return target
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not is_file(target):
                _fetch_whole(url, part, checksum, request)
                part.replace(target)
    except _UnreachableError as error:
        raise DownloadError(
            f"cannot download {target.name}: {error}. Download {url} on another machine and put it"
            f" at {target}"
        ) from error
    except (_DiskError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {target}: {reason}") from error
    return target


def _fetch_whole(url: str, part: Path, checksum: str, request: DataRequest) -> None:
    """Download to `part` and check the checksum; a wrong file is downloaded once more."""
    for again in (True, False):
        _fetch(url, part, request)
        if not checksum or file_checksum(part, checksum) == full_checksum(checksum):
            return
        part.unlink()  # pieces of two files, or the login page of a network
        if again:
            request.note(f"{part.stem}: the checksum is wrong, downloading it again")
    raise _UnreachableError("the downloaded file is not the official one: its checksum is wrong")


def _fetch(url: str, part: Path, request: DataRequest) -> None:
    """Download to `part`; give up after several attempts in a row without progress."""
    failures = 0
    while True:
        before = _size(part)
        try:
            return _attempt(url, part, request)
        except urllib.error.HTTPError as error:
            if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{before}":
                return None  # the file was already complete
            if error.code == 416:
                part.unlink(missing_ok=True)  # not the beginning of this file
            reason = f"the server answered {error.code} {error.reason}"
            if error.code < 500 and error.code not in (416, BUSY):
                raise _UnreachableError(reason) from error
        except (http.client.HTTPException, OSError) as error:
            cause = getattr(error, "reason", error)
            if isinstance(cause, socket.gaierror):
                raise _UnreachableError("the host name cannot be resolved (offline?)") from error
            broken = isinstance(error, http.client.IncompleteRead)
            reason = "the connection was lost" if broken else str(cause) or type(error).__name__
        failures = 0 if _size(part) > before else failures + 1
        if failures > len(PAUSES):
            raise _UnreachableError(f"{reason} (run the same command again to resume)")
        request.note(f"{part.stem}: {reason}, trying again")
        time.sleep(PAUSES[failures - 1] if failures else 0)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _attempt(url: str, part: Path, request: DataRequest) -> None:
    have = _size(part)
    headers = {"User-Agent": "cl_clipfit"} | ({"Range": f"bytes={have}-"} if have else {})
    asked = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(asked, timeout=TIMEOUT_SECONDS) as answer:
        if answer.status != 206:
            have = 0  # the server sends the file from the start
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with part.open("ab" if have else "wb") as file:
            while chunk := answer.read(CHUNK):
                _write(file, chunk)
                have += len(chunk)
                request.progress(part.stem, have, total)
    if total is not None and have < total:
        raise http.client.IncompleteRead(b"", total - have)


def _write(file: IO[bytes], chunk: bytes) -> None:
    """Write and flush, so that a full disk is not mistaken for a lost connection."""
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        raise _DiskError(error.strerror or error) from error
