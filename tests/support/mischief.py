"""Reading untrusted files: each is refused at once, in a line, without memory."""

import random
import resource
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cl_clipfit.errors import UserError, printable

TERABYTES = 10 << 40
MOST_MEMORY = 300 << 20  # more than this is no checking
NESTED = b")" + b"q\0h\0\x86" * 24  # of 2 ** 24 tuples, for whoever prints or hashes it
LONG_NUMBER = b"\x8a\xff" + b"\x7f" * 255


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def refused(read: Callable[[], Any], match: str | None = None) -> str:
    """Return the one line that a file is refused with, at once and without taking memory."""
    before, started = peak_bytes(), time.process_time()
    with pytest.raises(UserError, match=match) as caught:
        read()
    assert time.process_time() - started < 1
    assert peak_bytes() - before < MOST_MEMORY
    line = " ".join(str(caught.value).split())
    assert len(line) < 1000 and line.isprintable()
    return line


def mutations(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield damaged copies: bytes changed, cut out, doubled, or set to the largest number."""
    draws = random.Random(seed)
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(draws.randint(1, 4)):
            at, size = draws.randrange(len(data)), draws.choice((1, 1, 2, 4, 8, 40))
            piece = draws.choice(
                (b"", draws.randbytes(size), b"\xff" * size, b"9" * size, bytes(size),
                 bytes(changed[at : at + size]) * 2)
            )  # fmt: skip
            changed[at : at + size] = piece
        yield bytes(changed)


def fuzz(file: Path, data: bytes, count: int, read: Callable[[], Any]) -> None:
    """Read damaged copies: each is read, or refused with a line, and none takes a second."""
    before, ways = peak_bytes(), set()
    for changed in mutations(data, count):
        file.write_bytes(changed)
        started = time.process_time()
        try:
            read()
            ways.add("read")
        except UserError as error:
            assert printable(str(error)) == str(error)
            ways.add("refused")
        assert time.process_time() - started < 1, changed[:200]
    assert "refused" in ways
    assert peak_bytes() - before < MOST_MEMORY


class Runs:
    """A class whose pickle makes a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


def rewrite(file: Path, change: Callable[[str, bytes], bytes], kind: int = 0) -> Path:
    """Write an archive anew, each member changed."""
    with zipfile.ZipFile(file) as archive:
        content = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file


def unicode(value: str) -> bytes:
    """Return the opcodes of a text."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()
