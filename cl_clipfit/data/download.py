"""One routine for all downloads: progress, resume, checksum, whole files only."""

import hashlib
import http.client
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from cl_clipfit.errors import UserError, is_file

CHUNK = 1 << 20
TIMEOUT_SECONDS = 30
PAUSES = (1.0, 4.0, 10.0)  # before each further attempt
Progress = Callable[[str, int, int | None], None]


class _UnreachableError(Exception):
    """The host cannot be reached, or broke off; another attempt may help."""


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
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def download(url: str, target: Path, progress: Progress) -> Path:
    """Fetch a file unless it is there; an interrupted download goes on where it stopped.

    The file appears under its name when all of it has arrived. Two processes may ask for the same
    file: one fetches, the other waits.

    Args:
        url: where it is.
        target: where it goes.
        progress: told a label, the bytes so far and the bytes in all, where known.

    Raises:
        UserError: the host cannot be reached, refuses, or the disk cannot be written. The message
            names the URL and the place for a copy fetched elsewhere.
    """
    if is_file(target):
        return target
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not is_file(target):
                _fetch(url, part, progress)
                part.replace(target)
    except _UnreachableError as error:
        raise UserError(
            f"cannot download {target.name}: {error}. Fetch {url} on another machine and put it at"
            f" {target}"
        ) from error
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def _fetch(url: str, part: Path, progress: Progress) -> None:
    """Download to `part`, with several attempts."""
    for pause in (*PAUSES, None):
        try:
            return _attempt(url, part, progress)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is no beginning of this file
                part.unlink(missing_ok=True)
            elif error.code < 500 or pause is None:
                raise _UnreachableError(
                    f"the server answers {error.code} {error.reason}"
                ) from error
        except (http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(error, OSError) and error.filename is not None:
                raise  # of the disk, not of the network
            if isinstance(reason, socket.gaierror):
                raise _UnreachableError("its host is unknown here, is there a network?") from error
            if pause is None:
                raise _UnreachableError(str(reason) or type(error).__name__) from error
        time.sleep(pause or 0)
    return None


def _attempt(url: str, part: Path, progress: Progress) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "cl_clipfit"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        if answer.status != 206:
            have = 0  # the server sends the whole file
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with part.open("ab" if have else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                progress(part.stem, have, total)
    if total is not None and have < total:
        raise http.client.IncompleteRead(b"", total - have)
