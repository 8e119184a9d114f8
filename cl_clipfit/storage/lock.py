"""One process at a time writes a run folder.

The lock is one of the operating system on `.lock` in the folder, taken by filelock: it ends with
its process however that ends. Where the file system has none, the process that the file names
stands for it: one of this machine that is alive keeps others out, any other one is taken for dead.
filelock's own stand-in is not used there: it cannot replace the file of a killed process where the
file system cannot exchange two names, as NFS and Lustre cannot.
"""

import contextlib
import errno
import os
import secrets
import socket
import stat
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
_WAIT_SECONDS, _PAUSE_SECONDS = 0.2, 0.02  # a process that has just begun writes who it is


@dataclass
class _Holding:
    """A lock that this process has, or is about to have.

    Attributes:
        text: what it writes into the lock file; no other process ever writes the same.
        path: the lock file.
        lock: of the operating system; None where the file system has none.
        handle: of the open, locked file; it belongs to the lock.
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
            UserError: another process has it, or the file is not a regular file.
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
        if status.st_nlink > 1:  # what is written would be in the other one too
            raise UserError(f"{self.path} is a hard link to another file: remove it")
        os.ftruncate(handle, 0)
        os.pwrite(handle, self.text, 0)
        self.handle = handle

    def release(self) -> None:
        """Remove the file while it is locked, so that no lock of another process goes with it."""
        with contextlib.suppress(OSError):  # the folder may be gone: then nothing is left to do
            if self.is_whole():
                self.path.unlink()
        if self.lock is not None:
            self.lock.release()


_held: dict[tuple[int, int], _Holding] = {}  # by device and inode of the folder
os.register_at_fork(after_in_child=_held.clear)  # filelock closes what a fork inherits


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep every other process from holding the same folder; it is made where it is missing.

    Raises:
        UserError: it is held, by another process or this one, or it cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        status = folder.stat()
    key, holding = (status.st_dev, status.st_ino), _Holding(_describe_self(), folder / LOCK)
    if _held.setdefault(key, holding) is not holding:
        raise UserError(f"{folder}: this process is writing it already: let it end first")
    try:
        with writing(folder):
            holding.acquire()
    except BaseException:
        del _held[key]
        raise
    try:
        yield
    finally:
        if _held.pop(key, None) is holding:  # not so in a process that was forked meanwhile
            holding.release()


def require(folder: Path) -> None:
    """Refuse to continue in a folder that was removed meanwhile, or that another process has now.

    Raises:
        UserError: it is not there, or no longer held by this process, which held it.
    """
    held = [holding for holding in _held.values() if holding.path == folder / LOCK]
    if not folder.is_dir() or not all(holding.is_whole() for holding in held):
        raise UserError(f"{folder} has vanished during the run: repeat the command")


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


def _holder(text: bytes) -> dict[str, Any] | None:
    """Return what a lock file says; None where it is empty or damaged."""
    try:
        holder = unseal(text)
    except (ValueError, RecursionError):
        return None
    pid = holder.get("pid")
    return holder if isinstance(pid, int) and pid > 0 and {"host", "since"} <= {*holder} else None


def _is_alive(holder: dict[str, Any] | None) -> bool:
    """Return whether a process, and not this one, may be alive; nothing says so elsewhere."""
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
    with contextlib.suppress(OSError):
        holder = _holder(path.read_bytes())
    who = "another process, which its lock does not name,"
    if holder:
        who = f"process {holder['pid']} on {holder['host']}, since {holder['since']},"
    return UserError(
        f"{path.parent}: {who} is writing it: wait for it, or stop that process; if it is gone and"
        f" this is still said, remove {path}"
    )
