"""One process at a time writes a run folder.

The lock is one of the operating system on `.lock` in the folder, which ends with its process
however that ends. Where the file system has none, the process that the file names stands for it:
one of this machine that is alive keeps others out, any other one is taken for dead.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cl_clipfit.errors import UserError
from cl_clipfit.storage.files import seal, sha256, unseal, write_atomic, writing

LOCK = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
_LOOKS, _PAUSE_SECONDS = 10, 0.02  # one that has just begun takes a moment to write who it is


@dataclass
class _Holding:
    """A lock that this process has, or is about to have.

    Attributes:
        text: what it writes into the lock file; no other process ever writes the same.
        path: the lock file.
        handle: of the open, locked file; None where the file system has no locks.
    """

    text: bytes
    path: Path
    handle: int | None = None


_held: dict[tuple[int, int], _Holding] = {}  # by device and inode of the folder


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep every other process from holding the same folder; it is made where it is missing.

    Raises:
        UserError: it is held, by another process or this one, or it cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        found = folder.stat()
    key, own = (found.st_dev, found.st_ino), _Holding(_describe_self(), folder / LOCK)
    if _held.setdefault(key, own) is not own:
        raise UserError(f"{folder}: this process is writing it already: let it end first")
    try:
        with writing(folder):
            _acquire(own)
    except BaseException:
        del _held[key]
        raise
    try:
        yield
    finally:
        if _held.pop(key, None) is own:  # not so in a process that was forked meanwhile
            _release(own)


def require(folder: Path) -> None:
    """Refuse to go on in a folder that was removed meanwhile, or that another process has now.

    Raises:
        UserError: it is not there, or no longer held by this process, which held it.
    """
    held = [own for own in _held.values() if own.path == folder / LOCK]
    if not folder.is_dir() or any(not _is_whole(own) for own in held):
        raise UserError(f"{folder} has vanished during the run: repeat the command")


def _is_whole(own: _Holding) -> bool:
    if own.handle is None:
        return _read(own.path) == own.text
    return _is_open_at(own.handle, own.path)


def _acquire(own: _Holding) -> None:
    while True:
        handle = os.open(own.path, _FLAGS, 0o666)  # less the umask
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise UserError(f"{own.path} is no file: remove it")
            if not _lock(handle, own.path):
                break
            # Another one may have removed the file after it was opened here, and before it was
            # locked: then this is a lock on nothing.
            if _is_open_at(handle, own.path):
                if os.fstat(handle).st_nlink > 1:  # what is written would be in the other one too
                    raise UserError(f"{own.path} is a hard link to another file: remove it")
                os.ftruncate(handle, 0)
                os.lseek(handle, 0, os.SEEK_SET)
                os.write(handle, own.text)
                own.handle = handle
                return
        finally:
            if own.handle is None:
                os.close(handle)
    _claim(own.path, own.text)


def _release(own: _Holding) -> None:
    with contextlib.suppress(OSError):  # the folder may be gone, and then there is nothing to do
        if own.handle is None:
            if _read(own.path) == own.text:
                own.path.unlink()
        # Removed while it is locked, so that no lock of another process goes with it.
        elif _is_open_at(own.handle, own.path):
            own.path.unlink()
    if own.handle is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(own.handle, fcntl.LOCK_UN)
        os.close(own.handle)


def _lock(handle: int, path: Path) -> bool:
    """Lock an open file; False where the file system has no locks.

    Raises:
        UserError: another process has locked it.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        if isinstance(error, BlockingIOError):
            raise _busy(path) from error
        raise
    return True


def _is_open_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _forget() -> None:
    """Close in a forked process what it inherits, or the lock would outlive the one that has it."""
    for holding in _held.values():
        if holding.handle is not None:
            os.close(holding.handle)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


# ---- without locks of the operating system -------------------------------------------------------


def _claim(path: Path, text: bytes) -> None:
    """Make a lock file that names this process, unless it names another one that is alive.

    A dead process's file is replaced by the one who has a second lock file, named after what is to
    be replaced: of several who see the same dead process, one replaces it, and the others see that
    it has. The second file is claimed as the first, for its process may die too.

    Raises:
        UserError: another process has it, or there is no way to make a file but once.
    """
    while not _link(path, text):
        found = _read(path)
        if found is None:
            continue
        if _is_alive(_holder(found)):
            raise _busy(path)
        right = path.with_name(f"{LOCK}.{sha256(found)[:16]}")
        _claim(right, text)
        try:
            if _read(path) == found:
                write_atomic(path, text)
                return
        finally:
            right.unlink(missing_ok=True)


def _link(path: Path, text: bytes) -> bool:
    """Make a file with its content at once; False where there is one already."""
    whole = path.with_name(f"{LOCK}.{secrets.token_hex(8)}")
    write_atomic(whole, text)
    try:
        os.link(whole, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise UserError(
            f"{path.parent}: its file system has neither locks nor hard links: choose a folder on"
            " another one"
        ) from error
    finally:
        whole.unlink(missing_ok=True)
    return True


# ---- who has it ----------------------------------------------------------------------------------


def _describe_self() -> bytes:
    since = datetime.now().astimezone().isoformat(timespec="milliseconds")
    return seal({"pid": os.getpid(), "host": socket.gethostname(), "since": since})


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _holder(text: bytes | None) -> dict[str, Any] | None:
    """Return what a lock file says; None where it is empty or damaged."""
    try:
        found = unseal(text or b"")
    except (ValueError, RecursionError):
        return None
    pid = found.get("pid")
    return found if isinstance(pid, int) and pid > 0 and {"host", "since"} <= {*found} else None


def _is_alive(holder: dict[str, Any] | None) -> bool:
    """Tell whether a process, and not this one, may be alive; nothing says so elsewhere."""
    if holder is None:
        return False
    if holder["host"] != socket.gethostname():
        return True
    if holder["pid"] == os.getpid():  # an earlier process of the same number: this one holds none
        return False
    try:
        os.kill(holder["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


def _busy(path: Path) -> UserError:
    holder = None
    for _ in range(_LOOKS):
        with contextlib.suppress(OSError):
            holder = _holder(_read(path)) or holder
        if _is_alive(holder):
            break
        time.sleep(_PAUSE_SECONDS)
    who = "another process, which its lock does not name,"
    if holder:
        who = f"process {holder['pid']} on {holder['host']}, since {holder['since']},"
    return UserError(
        f"{path.parent}: {who} is writing it: wait for it, or stop that process; if it is gone and"
        f" this is still said, remove {path}"
    )
