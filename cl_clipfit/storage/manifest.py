"""`MANIFEST.sha256`: the hash of every file of a run folder, in the format of `sha256sum -c`.

Paths are relative and sorted by their bytes. The manifest itself, files whose names start with "."
(locks, files being written) and the folder `checkpoints` are excluded.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from cl_clipfit.errors import UserError
from cl_clipfit.storage.files import LARGEST, has_holes, read_bytes, reading, sha256, write_atomic
from cl_clipfit.storage.lock import hold

MANIFEST = "MANIFEST.sha256"
CHECKPOINTS = "checkpoints"  # folder
_LARGEST_MANIFEST = 16 << 20  # bytes
_MOST_PROBLEMS = 100  # that are reported about the lines of a manifest
_OF_ANY_SIZE = (".safetensors", ".pt")  # weights
_LINE = re.compile(rb"(\\?)([0-9a-f]{64})  (.+)", re.DOTALL)
_ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r"}  # as sha256sum escapes them
_ESCAPED = {after: before for before, after in _ESCAPES.items()}


def write_manifest(folder: Path, coming: Mapping[str, bytes] | None = None) -> None:
    """Write the manifest of a folder; symbolic links are excluded.

    Args:
        folder: of a run.
        coming: content of files that are written next, by name.

    Raises:
        UserError: the folder or a file cannot be read, or the manifest cannot be written.
    """
    with reading():
        names = [name for name, regular in _walk(folder) if regular]
        digests = {name: _digest(folder / name) for name in names}
    digests |= {name: sha256(data) for name, data in (coming or {}).items()}
    write_atomic(folder / MANIFEST, _render(digests))


def run_around(file: Path) -> Path | None:
    """Return the run folder that contains a file or its future path, or None."""
    return next((p for p in file.absolute().parents if (p / MANIFEST).is_file()), None)


@contextlib.contextmanager
def adding(folder: Path) -> Iterator[None]:
    """Lock a finished run's folder, and add what a `with` block writes there to its manifest.

    The hashes of other files stay as they are, even if those files have changed.

    Raises:
        UserError: another process holds the folder, or it is missing or not writable.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} has vanished: put it back and repeat the command")
    with hold(folder):
        before = _stamps(folder)
        yield
        with reading():
            if not os.path.lexists(folder / MANIFEST):
                return  # a run of an older version, without a manifest
            digests, problems = _parse(read_bytes(folder / MANIFEST, _LARGEST_MANIFEST))
            after = _stamps(folder)
            written = [name for name, stamp in after.items() if before.get(name) != stamp]
            digests |= {name: _digest(folder / name) for name in written}
            digests = {n: d for n, d in digests.items() if n in after or n not in before}
        if not problems:  # a damaged manifest is left for `verify` to report
            write_atomic(folder / MANIFEST, _render(digests))


def _stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return inode, time and size of each file, which change when the file is replaced."""
    stamps = {}
    for name, regular in _walk(folder):
        if regular:
            status = (folder / name).stat()
            stamps[name] = status.st_ino, status.st_mtime_ns, status.st_size
    return stamps


def is_as_written(folder: Path, name: str) -> bool:
    """Return whether a file of a finished run has the hash that the manifest lists.

    Raises:
        UserError: the file or the manifest cannot be read.
    """
    digests, _ = _parse(read_bytes(folder / MANIFEST, _LARGEST_MANIFEST))
    with reading():
        return digests.get(name) == _digest(folder / name)


def check_manifest(folder: Path) -> list[str]:
    """Compare a folder with its manifest.

    Returns:
        a sentence for every file that is changed, missing, unexpected or not a regular file, and
        for every defect of the manifest itself; empty if everything is as it was written.
    """
    try:
        present = dict(_walk(folder))
    except OSError as error:
        return [f"cannot read {show_name(str(error.filename))}: {error.strerror or error}"]
    file = folder / MANIFEST
    if file.is_symlink():
        return [f"{MANIFEST} is a symbolic link: replace it by the file itself"]
    if not os.path.lexists(file):
        return [
            f"{MANIFEST} is missing: it was deleted, or an older version wrote the run;"
            " repeat the run with --fresh, which writes one"
        ]
    try:
        listed, problems = _parse(read_bytes(file, _LARGEST_MANIFEST))
    except UserError as error:
        return [str(error)]
    if len(problems) == _MOST_PROBLEMS:  # the rest was not read
        return problems
    for name in sorted({*present, *listed}, key=os.fsencode):
        if present.get(name) is False:
            problems.append(f"{show_name(name)} is a symbolic link or not a regular file")
        elif name not in present:
            problems.append(f"{show_name(name)} is missing")
        elif name not in listed:
            problems.append(f"{show_name(name)} is not in the manifest")
        else:
            problems += _compare(folder, name, listed[name])
    return problems


def show_name(name: str) -> str:
    """Return a file's name in printable characters, on one line."""
    return name if name.isprintable() else ascii(name)


def _compare(folder: Path, name: str, expected: str) -> list[str]:
    try:
        size = (folder / name).stat().st_size
        if size > LARGEST and PurePosixPath(name).suffix not in _OF_ANY_SIZE:
            return [f"{show_name(name)} is changed: it has {size:,} bytes"]
        if has_holes(folder / name):  # hashing it would take forever
            return [f"{show_name(name)} is changed: most of its {size:,} bytes are holes"]
        digest = _digest(folder / name)
    except OSError as error:
        return [f"cannot read {show_name(name)}: {error.strerror or error}"]
    if digest == expected:
        return []
    return [f"{show_name(name)} is changed: its SHA-256 is {digest[:12]}, expected {expected[:12]}"]


def _walk(folder: Path, below: str = "") -> Iterator[tuple[str, bool]]:
    """Yield the name of everything a manifest covers, and whether it is a regular file."""
    with os.scandir(folder / below) as entries:
        for entry in entries:
            name = below + entry.name
            if entry.is_dir(follow_symlinks=False):
                if name != CHECKPOINTS:
                    yield from _walk(folder, f"{name}/")
            elif not entry.is_file(follow_symlinks=False):
                yield name, False
            elif _covered(name):
                yield name, True


def _covered(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        name != MANIFEST
        and not path.name.startswith(".")
        and (path.parts[0] != CHECKPOINTS or len(path.parts) == 1)
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _render(digests: Mapping[str, str]) -> bytes:
    lines = []
    for raw, digest in sorted((os.fsencode(name), digest) for name, digest in digests.items()):
        escaped = re.sub(rb"[\\\n\r]", lambda match: _ESCAPES[match[0]], raw)
        mark = b"" if escaped == raw else b"\\"
        lines.append(mark + digest.encode() + b"  " + escaped + b"\n")
    return b"".join(lines)


def _parse(data: bytes) -> tuple[dict[str, str], list[str]]:
    """Return the hashes by name, and a sentence for every deviation from `_render`.

    Reading stops after `_MOST_PROBLEMS` problems.
    """
    digests: dict[str, str] = {}
    problems: list[str] = []
    lines = data.split(b"\n")[: -1 if data.endswith(b"\n") else None]
    for number, line in enumerate(lines, 1):
        where = f"{MANIFEST}, line {number}"
        if len(problems) == _MOST_PROBLEMS - 1:
            problems.append(f"{where}: the last {len(lines) - number + 1:,} lines were not read")
            break
        if (match := _LINE.fullmatch(line)) is None:
            problems.append(f"{where} is damaged")
            continue
        escaped, digest, raw = match.groups()
        if escaped:
            raw = re.sub(rb"\\[\\nr]", lambda char: _ESCAPED[char[0]], raw)
        try:
            name = os.fsdecode(raw)
        except UnicodeDecodeError:
            problems.append(f"{where} is damaged: the file name is not valid")
            continue
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            problems.append(f"{where} names {show_name(name)}, which is outside the folder")
        elif name in digests:
            problems.append(f"{where} repeats {show_name(name)}")
        elif str(path) != name or not _covered(name):
            problems.append(f"{where} names {show_name(name)}, which a manifest does not cover")
        else:
            digests[name] = digest.decode()
    if not problems and _render(digests) != data:
        problems.append(f"{MANIFEST} is damaged: its order, escapes or end have been changed")
    return digests, problems
