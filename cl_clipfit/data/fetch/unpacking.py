"""Unpack untrusted archives: nothing is written outside the folder, and nothing fills the disk."""

import bz2
import gzip
import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from cl_clipfit.errors import UserError
from cl_clipfit.storage.files import writing

CHUNK = 1 << 20
LIMIT_BYTES = 64 << 30
LIMIT_MEMBERS = 5_000_000
LARGEST_HEADER = 16 << 20  # bytes; larger ones serve only to exhaust memory
_END_OF_TAR = bytes(512)
_COMPRESSED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open,
}  # fmt: skip

Progress = Callable[[str, int, int | None], None]
Member = tuple[str, int, IO[bytes] | None, int]
"""Name, size in bytes, content (None for a folder), and bytes of the archive read so far."""


def _silent(label: str, done: int, total: int | None) -> None:
    """Ignore a report."""


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `target` that is renamed to `target` on success."""
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        stage = temporary / "new"
        with writing(target):
            stage.mkdir()
        yield stage
        with writing(target):
            stage.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def unpack_into(
    archive: Path, folder: Path, limit_bytes: int = LIMIT_BYTES, progress: Progress = _silent
) -> None:
    """Unpack a tar, tar.gz, tar.xz, tar.bz2, zip, or gz of one file; copy a plain .mat file.

    On an error, files already written are kept: unpack into a `new_folder`.

    Args:
        archive: the file; its kind is detected from its content.
        folder: target folder; it may hold other files.
        limit_bytes: maximum total size of the unpacked files.
        progress: called with a label, the bytes of the archive so far, and its size.

    Raises:
        UserError: the archive is damaged, contains links, devices or paths outside the folder, or
            exceeds the limit or `LIMIT_MEMBERS` members; or a file cannot be written.
    """
    total, room, members = 0, limit_bytes, 0
    try:
        total = archive.stat().st_size
        for name, size, content, done in archive_members(archive):
            members += 1
            if size > room or members > LIMIT_MEMBERS:
                raise _too_large(archive, limit_bytes)
            room -= _place(archive, folder, name, content, room, limit_bytes)
            progress(f"unpacking {archive.name}", min(done, total - 1), total)
    except UserError:
        raise
    except Exception as error:  # a damaged archive may raise anything
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"{archive} is damaged or incomplete, delete it and download it again:"
            f" {(reason or type(error).__name__)[:200]}"
        ) from error
    progress(f"unpacking {archive.name}", total, total)


def _too_large(archive: Path, limit_bytes: int) -> UserError:
    return UserError(
        f"{archive} holds more than {limit_bytes:,} bytes or {LIMIT_MEMBERS:,} members and is"
        " not unpacked"
    )


def _place(
    archive: Path, folder: Path, name: str, content: IO[bytes] | None, room: int, limit_bytes: int
) -> int:
    """Write one member and return its size."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    absolute = name.startswith(("/", "\\")) or PureWindowsPath(name).drive
    if absolute or ".." in parts or "\0" in name:
        raise UserError(f"{archive}: the name {name!r} points outside the folder")
    path, written = folder.joinpath(*parts), 0
    with writing(path):
        try:
            if content is None:
                path.mkdir(parents=True, exist_ok=True)
                return 0
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("xb")
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"{archive} contains {name!r} twice") from error
    with writing(path), file:  # a full disk may show only on closing
        while chunk := _read(content):
            written += len(chunk)
            if written > room:
                raise _too_large(archive, limit_bytes)
            file.write(chunk)
    return written


def _read(content: IO[bytes]) -> bytes:
    """Read a chunk; a damaged archive must not be mistaken for a failing disk."""
    try:
        return content.read(CHUNK)
    except OSError as error:
        raise EOFError(str(error)) from error


def archive_members(archive: Path) -> Iterator[Member]:
    """Yield the members of an archive; read the content of each before advancing.

    Raises:
        UserError: links, devices, or headers and padding that serve only to exhaust memory.
        Exception: any kind of exception, if the archive is damaged.
    """
    with archive.open("rb") as raw:
        if archive.suffix == ".mat":  # labels published next to the archives, uncompressed
            yield archive.name, 0, raw, 0
            return
        begin = raw.read(6)
        raw.seek(0)
        if begin.startswith((b"PK\3\4", b"PK\5\6")):
            yield from _zip_members(archive, raw)
            return
        plain: IO[bytes] = raw
        for magic, opener in _COMPRESSED.items():
            if begin.startswith(magic):
                plain = opener(raw)
        name = archive.name.removesuffix(".gz")
        if name != archive.name and not name.endswith(".tar"):
            yield name, 0, plain, 0  # one file, whose size is known only once it is read
            return
        for member in _tar_members(archive, plain):
            yield *member, raw.tell()
        rest = 0
        while chunk := plain.read(CHUNK):  # the compression's checksum is at the very end
            rest += len(chunk)
            if chunk.strip(b"\0"):  # a block of zeros, not the end
                raise EOFError("there is data after its end")
            if rest > LARGEST_HEADER:
                raise UserError(f"{archive}: the padding after its end is too large")


def _zip_members(archive: Path, raw: IO[bytes]) -> Iterator[Member]:
    with zipfile.ZipFile(raw) as file:
        for member in file.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(f"{archive}: {member.filename!r} is a link or a device")
            if member.flag_bits & 1:
                raise UserError(f"{archive}: {member.filename!r} is encrypted")
            if member.is_dir():
                yield member.filename, 0, None, member.header_offset
                continue
            with file.open(member) as content:
                yield member.filename, member.file_size, content, member.header_offset


class _Bounded:
    """A file that refuses very large headers, read at once or in pieces."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file
        self.last = b""
        self.room: float = LARGEST_HEADER

    def read(self, size: int) -> bytes:
        """Read bytes and remember them."""
        self.room -= size
        if self.room < 0:
            raise tarfile.ReadError(f"a header of more than {LARGEST_HEADER:,} bytes")
        self.last = self._file.read(size)
        return self.last


def _next_header(file: Any, bounded: _Bounded) -> Any:
    bounded.room = LARGEST_HEADER
    member = file.next()
    bounded.room = float("inf")  # for the content, which is counted elsewhere
    return member


def _tar_members(archive: Path, plain: IO[bytes]) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    bounded: Any = _Bounded(plain)
    file: Any
    with tarfile.open(fileobj=bounded, mode="r:") as file:
        while (member := _next_header(file, bounded)) is not None:
            file.members.clear()  # millions of them would exhaust memory
            if not (member.isreg() or member.isdir()):
                raise UserError(f"{archive}: {member.name!r} is a link or a device")
            if hasattr(tarfile, "data_filter"):  # Python's built-in safety checks
                try:
                    tarfile.data_filter(member, str(archive.parent))
                except tarfile.FilterError as error:
                    raise UserError(f"{archive}: {error}") from error
            yield member.name, member.size, file.extractfile(member)
        if bounded.last != _END_OF_TAR:  # tarfile mistakes damage for the end
            raise EOFError("it is truncated")
