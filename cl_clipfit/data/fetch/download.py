"""One routine for all downloads: progress, resume, checksum, whole files only."""

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
PAUSES = (1.0, 4.0)  # before each further attempt, where the last one brought nothing
BUSY = 429


class DownloadError(UserError):
    """A file could not be fetched; the message says from where, and where a copy may go."""


class _UnreachableError(Exception):
    """The host cannot be reached, refuses, or sends something else."""


class _DiskError(Exception):
    """What has arrived cannot be written."""


def cache_folder() -> Path:
    """Return where data sets are kept: CL_CLIPFIT_DATA, else a folder in the user's cache."""
    given = os.environ.get("CL_CLIPFIT_DATA")
    if given:
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "cl_clipfit"


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file.

    Raises:
        UserError: it cannot be read.
    """
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def full_checksum(checksum: str) -> str:
    """Return "ALGORITHM:HEX" in small letters; a bare checksum is a SHA-256.

    Example:
        >>> full_checksum("MD5:00ff")
        'md5:00ff'
    """
    return (checksum if ":" in checksum else f"sha256:{checksum}").lower()


def file_checksum(path: Path, like: str = "") -> str:
    """Return "ALGORITHM:HEX" of a file, by the algorithm of another checksum; default SHA-256.

    Raises:
        UserError: it cannot be read.
    """
    algorithm = full_checksum(like).partition(":")[0]
    return f"{algorithm}:{file_hash(path, algorithm)}"


def download(url: str, target: Path, checksum: str, request: DataRequest) -> Path:
    """Fetch a file unless it is there; an interrupted download goes on where it stopped.

    The file appears under its name when all of it has arrived and its checksum is right. Two
    processes may ask for the same file: one fetches, the other waits.

    Args:
        url: where it is.
        target: where it goes.
        checksum: "sha256:HEX", "md5:HEX", the bare digits of a SHA-256, or "" where none is
            published.
        request: told about progress and retries.

    Raises:
        DownloadError: the host cannot be reached, refuses or sends another file. The message names
            the URL and the place for a copy fetched elsewhere.
        UserError: the disk cannot be written.
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
            f"cannot download {target.name}: {error}. Fetch {url} on another machine and put it at"
            f" {target}"
        ) from error
    except (_DiskError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {target}: {reason}") from error
    return target


def _fetch_whole(url: str, part: Path, checksum: str, request: DataRequest) -> None:
    """Download to `part` until the checksum is right; a wrong file is fetched once more."""
    for again in (True, False):
        _fetch(url, part, request)
        if not checksum or file_checksum(part, checksum) == full_checksum(checksum):
            return
        part.unlink()  # pieces of two files, or the page of a portal
        if again:
            request.note(f"{part.stem}: the checksum is wrong, fetching it again")
    raise _UnreachableError("what arrives is not the official file, its checksum is wrong")


def _fetch(url: str, part: Path, request: DataRequest) -> None:
    """Download to `part`; give up when several attempts in a row bring nothing new."""
    failures = 0
    while True:
        before = _size(part)
        try:
            return _attempt(url, part, request)
        except urllib.error.HTTPError as error:
            if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{before}":
                return None  # all of it was there
            if error.code == 416:
                part.unlink(missing_ok=True)  # no beginning of this file
            reason = f"the server answers {error.code} {error.reason}"
            if error.code < 500 and error.code not in (416, BUSY):
                raise _UnreachableError(reason) from error
        except (http.client.HTTPException, OSError) as error:
            cause = getattr(error, "reason", error)
            if isinstance(cause, socket.gaierror):
                raise _UnreachableError("its host is unknown here (no network?)") from error
            broken = isinstance(error, http.client.IncompleteRead)
            reason = "the connection broke off" if broken else str(cause) or type(error).__name__
        failures = 0 if _size(part) > before else failures + 1
        if failures > len(PAUSES):
            raise _UnreachableError(f"{reason} (the same command goes on where this one stopped)")
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
            have = 0  # the server sends the whole file
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
    """Write and flush, so that a full disk is not taken for a broken connection."""
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        raise _DiskError(error.strerror or error) from error
