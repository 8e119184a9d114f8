"""One process at a time writes a run folder.

filelock takes an operating-system lock on `.lock` in the folder, which is released when its process
ends, in whatever way. If the file system does not support locks, the process named in the file
counts as the holder while it may be alive. filelock's own `SoftFileLock` is not used then: it
cannot replace the file of a killed process on file systems that cannot exchange two names, such as
NFS and Lustre.
"""

import contextlib
import errno
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

from filelock import FileLock, Timeout

from cl_clipfit.errors import UserError
from cl_clipfit.storage.files import seal, sha256, unseal, write_atomic, writing

LOCK = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
# Time for a process that has just taken the lock to write its identity.
_WAIT_SECONDS, _PAUSE_SECONDS = 0.2, 0.02


class BusyError(UserError):
    """Another process, or this one, holds the lock."""


@dataclass
class _Holding:
    """A lock that this process has, or is about to have.

    Attributes:
        text: content of the lock file, unique to this process.
        path: the lock file.
        lock: the operating-system lock; None if the file system does not support locks.
        handle: file descriptor of the open, locked file; it belongs to the lock.
    """

    text: bytes
    path: Path
    lock: FileLock | None = None
    handle: int = -1

    def is_whole(self) -> bool:
        """Return whether the lock file is still this process's."""
        try:
            if self.lock is None:
                return self.path.read_bytes() == self.text
            return os.path.samestat(os.fstat(self.handle), self.path.lstat())
        except FileNotFoundError:
            return False

    def acquire(self) -> None:
        """Lock the file.

        Raises:
            UserError: another process holds it, or the file is not a regular file or has several
                hard links.
        """
        self.lock = FileLock(
            self.path, _WAIT_SECONDS, poll_interval=_PAUSE_SECONDS, thread_local=False,
            fallback_to_soft=False, on_acquired=self._write,
        )  # fmt: skip
        try:
            self.lock.acquire()
        except Timeout as error:
            raise _busy(self.path) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self.lock = None
            _claim(self.path, self.text)

    def _write(self, handle: int) -> None:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{self.path} is not a regular file: remove it")
        if status.st_nlink > 1:  # writing would change the other file too
            raise UserError(f"{self.path} is a hard link to another file: remove it")
        os.ftruncate(handle, 0)
        os.pwrite(handle, self.text, 0)
        self.handle = handle

    def release(self) -> None:
        """Remove the file while it is locked; once released, it may be another process's."""
        with contextlib.suppress(OSError):  # the folder may be gone: then nothing is left to do
            if self.is_whole():
                self.path.unlink()
        if self.lock is not None:
            self.lock.release()


_held: dict[tuple[int, int], _Holding] = {}  # by device and inode of the folder
os.register_at_fork(after_in_child=_held.clear)  # filelock closes what a fork inherits


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Lock a folder against all other processes, and create it if it is missing.

    Raises:
        UserError: another process or this one holds it already, or it cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        status = folder.stat()
    key, holding = (status.st_dev, status.st_ino), _Holding(_describe_self(), folder / LOCK)
    if _held.setdefault(key, holding) is not holding:
        raise BusyError(f"{folder}: this process is writing it already: let it end first")
    try:
        with writing(folder):
            holding.acquire()
    except BaseException:
        del _held[key]
        raise
    try:
        yield
    finally:
        if _held.pop(key, None) is holding:  # false in a process that was forked meanwhile
            holding.release()


@contextmanager
def hold_when_free(folder: Path, seconds: float = 60) -> Iterator[None]:
    """Lock a folder as `hold` does, but wait for the one who holds it.

    Raises:
        UserError: it is not free after `seconds`, or cannot be written.
    """
    until = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(hold(folder))
                break
            except BusyError:
                if time.monotonic() > until:
                    raise
                time.sleep(_PAUSE_SECONDS)
        yield


def require(folder: Path) -> None:
    """Refuse to continue in a folder that was removed, or that another process now holds.

    Raises:
        UserError: the folder is missing, or this process has lost its lock on it.
    """
    held = [holding for holding in _held.values() if holding.path == folder / LOCK]
    if not folder.is_dir() or not all(holding.is_whole() for holding in held):
        raise UserError(f"{folder} has vanished during the run: repeat the command")


# ---- without locks of the operating system -------------------------------------------------------


def _claim(path: Path, text: bytes) -> None:
    """Create a lock file that names this process, unless it names another one that may be alive.

    To replace the file of a dead process, a process must first claim a second lock file, named
    after the content to be replaced. If several processes find the same dead one, one of them
    replaces the file and the others see that it has changed. The second file is claimed in the same
    way, because its process may die too.

    Raises:
        UserError: another process holds the lock, or the file system has no hard links.
    """
    while not _link(path, text):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue
        if _is_alive(_holder(content)):
            raise _busy(path)
        right = path.with_name(f"{LOCK}.{sha256(content)[:16]}")
        _claim(right, text)
        try:
            if path.read_bytes() == content:
                write_atomic(path, text)
                return
        except FileNotFoundError:
            continue
        finally:
            right.unlink(missing_ok=True)


def _link(path: Path, text: bytes) -> bool:
    """Create a file together with its content; return False if it exists already."""
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


def _describe(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']}, since {holder['since']},"


def writer(folder: Path) -> str | None:
    """Return which other process is writing a folder, in words; None if there is none."""
    with contextlib.suppress(OSError):
        holder = _holder((folder / LOCK).read_bytes())
        if holder is not None and _is_alive(holder):
            return _describe(holder)
    return None


def _holder(text: bytes) -> dict[str, Any] | None:
    """Return the content of a lock file; None if it is empty or damaged."""
    try:
        holder = unseal(text)
    except (ValueError, RecursionError):
        return None
    pid = holder.get("pid")
    return holder if isinstance(pid, int) and pid > 0 and {"host", "since"} <= {*holder} else None


def _is_alive(holder: dict[str, Any] | None) -> bool:
    """Return whether another process may be alive; on another machine it always may."""
    if holder is None:
        return False
    if holder["host"] != socket.gethostname():
        return True
    if holder["pid"] == os.getpid():  # an earlier process with the same ID
        return False
    try:
        os.kill(holder["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


def _busy(path: Path) -> BusyError:
    holder = None
    with contextlib.suppress(OSError):
        holder = _holder(path.read_bytes())
    who = _describe(holder) if holder else "another process, which its lock does not name,"
    return BusyError(
        f"{path.parent}: {who} is writing it: wait for it, or stop that process; if it has ended"
        f" and this error remains, remove {path}"
    )
