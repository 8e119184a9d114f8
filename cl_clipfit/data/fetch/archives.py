"""Data sets in archives: located or downloaded, verified, and unpacked atomically."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from cl_clipfit.data.fetch.download import (
    DownloadError,
    cache_folder,
    download,
    file_checksum,
    full_checksum,
)
from cl_clipfit.data.fetch.unpacking import LIMIT_BYTES, new_folder, unpack_into
from cl_clipfit.data.source import DataRequest
from cl_clipfit.errors import UserError, is_file, program
from cl_clipfit.storage.files import reading, sha256, write_atomic, writing

MARKER = ".cl_clipfit.json"


@dataclass(frozen=True)
class Archive:
    """One of the files that a data set is published as.

    Attributes:
        url: the official URL; "" if there no longer is one.
        checksum: "sha256:HEX" or "md5:HEX"; "" if none is published.
        name: file name; default: the last part of the URL.
        into: folder below the data set's root that it is unpacked into.
        limit_bytes: maximum size when unpacked.
    """

    url: str
    checksum: str
    name: str = ""
    into: str = ""
    limit_bytes: int = LIMIT_BYTES

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.url.rpartition("/")[2])


@dataclass(frozen=True)
class Located:
    """A data set on disk.

    Attributes:
        folder: the root folder, which holds all expected paths.
        origin: "kind" ("folder" or "archive") and "verified", for `Source.origin`.
    """

    folder: Path
    origin: dict[str, Any] = field(default_factory=dict)


def obtain(
    name: str,
    archives: Sequence[Archive],
    expected: Sequence[str],
    request: DataRequest,
    help: str = "",
) -> Located:
    """Find a data set in `--data-dir` or in the cache, or else download and unpack it.

    Two processes may request the same data set: one unpacks it, the other waits.

    Args:
        name: name of the scenario, and of its folder in the cache.
        archives: the files that the data set is published as.
        expected: paths relative to the root that exist once it is unpacked.
        request: what the command says about data.
        help: further advice to show if an archive cannot be downloaded.

    Raises:
        UserError: a file is missing, not official, or cannot be downloaded or written.
    """
    files: list[Path] | None = None
    stamps: list[Any] = []
    official = [a.checksum and full_checksum(a.checksum) for a in archives]
    digests = ["" if request.unverified else checksum for checksum in official]
    given = request.data_dir
    if given is not None and (folder := _unpacked_in(given, name, archives, expected)):
        request.note(f"{name}: the files in {folder} are used unverified; results say so")
        return Located(folder, {"kind": "folder", "verified": False})
    home = cache_folder() / name
    root = home / "files"
    if given is not None:
        files = _archives_in(given, name, archives, expected)
        digests, stamps = _verify(archives, files, home, request)
        root = _place_for(home, official, digests)
    if not _is_kept(root, archives, expected, digests):
        with writing(home):
            home.mkdir(parents=True, exist_ok=True)
            lock = FileLock(home / ".lock")
            lock.acquire()
        try:
            if not _is_kept(root, archives, expected, digests):
                if files is None:
                    files = [_fetch(name, archive, home, request, help) for archive in archives]
                    digests, stamps = _verify(archives, files, home, request)
                _unpack_all(root, archives, files, digests, stamps, expected, request)
        finally:
            lock.release()
    verified = [entry["digest"] for entry in _read_marker(root)] == official
    if not verified:
        request.note(f"{name}: these files are not verified; results say so")
    return Located(root, {"kind": "archive", "verified": verified})


def _unpacked_in(
    given: Path, name: str, archives: Sequence[Archive], expected: Sequence[str]
) -> Path | None:
    """Return the folder at, below or above `given` that holds all expected paths."""
    if given.name in ("", "..") or given.is_symlink():
        given = given.resolve()
    below = {name, *(a.into.partition("/")[0] for a in archives)}
    below |= {a.name.partition(".")[0] for a in archives}
    for folder in (given, *(given / part for part in sorted(below)), given.absolute().parent):
        inside = folder != given.absolute().parent or all(
            path.partition("/")[0] == given.name for path in expected
        )
        if inside and expected and _missing(folder, expected) is None:
            return folder
    return None


def _missing(folder: Path, expected: Sequence[str]) -> str | None:
    return next((path for path in expected if not is_file(folder / path, or_folder=True)), None)


def _archives_in(
    given: Path, name: str, archives: Sequence[Archive], expected: Sequence[str]
) -> list[Path]:
    if is_file(given) and len(archives) == 1:
        return [given]
    folder = given.parent if is_file(given) else given
    files = [folder / archive.name for archive in archives]
    lacks = [file.name for file in files if not is_file(file)]
    if not is_file(given, or_folder=True):
        raise UserError(f"--data-dir {given}: no such file or folder")
    if lacks or not files:
        unpacked = ", ".join(expected[:4]) + (", ..." if len(expected) > 4 else "")
        packed = f"the archives {', '.join(a.name for a in archives)}, or " if archives else ""
        raise UserError(
            f"--data-dir {given} does not hold {name}: expected {packed}the unpacked {unpacked}"
            + (f" ({lacks[0]} is missing)" if 0 < len(lacks) < len(files) else "")
        )
    return files


def how_to_run_offline(name: str, model: str = "ARCH:TAG") -> str:
    """Return a sentence with the command that runs a scenario on files that are already here."""
    return (
        f"Then run offline: {program()} --scenario {name} --data-dir PATH"
        f" --model {model}:PATH_TO_WEIGHTS"
    )


def _fetch(name: str, archive: Archive, home: Path, request: DataRequest, help: str) -> Path:
    """Return the archive in the cache, downloading it if it is missing."""
    target = home / archive.name
    elsewhere = f"or anywhere else. {how_to_run_offline(name)}"
    if not archive.url and not is_file(target):
        raise UserError(
            f"{name}: {archive.name} cannot be downloaded: put it at {target}, {elsewhere}"
            + (f". {help}" if help else "")
        )
    try:
        return download(archive.url, target, archive.checksum, request)
    except DownloadError as error:
        raise DownloadError(f"{error}, {elsewhere}") from error


def _place_for(home: Path, official: Sequence[str], digests: Sequence[str]) -> Path:
    """Return where archives named by the user are unpacked, without replacing other ones."""
    default = home / "files"
    kept = [entry["digest"] for entry in _read_marker(default)]
    match = all(
        checksum in ("", digest) for checksum, digest in zip(official, digests, strict=True)
    )
    if match and (all(official) or kept in ([], list(digests))):
        return default
    return home / f"files-{sha256(' '.join(digests).encode())[:12]}"


def _stamp(file: Path) -> list[Any]:
    """Return path, size, times and inode, which identify a file's content without reading it."""
    with reading(file):
        stat = file.stat()
    times = [stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    return [str(file.resolve()), stat.st_size, *times]


def _verify(
    archives: Sequence[Archive], files: Sequence[Path], home: Path, request: DataRequest
) -> tuple[list[str], list[Any]]:
    """Return the files' checksums and stamps, without rereading files that were unpacked before.

    Raises:
        UserError: a file is not the official one.
    """
    unpacked = [entry for root in home.glob("files*") for entry in _read_marker(root)]
    digest_of = {repr(entry["stamp"]): entry["digest"] for entry in unpacked}
    digests, stamps = [], [_stamp(file) for file in files]  # taken before the files are read
    for archive, file, stamp in zip(archives, files, stamps, strict=True):
        algorithm = full_checksum(archive.checksum).partition(":")[0]
        digest = digest_of.get(repr(stamp), "")
        if not digest.startswith(f"{algorithm}:"):
            digest = file_checksum(file, archive.checksum)
        official = full_checksum(archive.checksum)
        if archive.checksum and digest != official and not request.unverified:
            again = (
                f"download it again from {archive.url}, or"
                if archive.url
                else "download it again, or"
            )
            raise UserError(
                f"{file} is not the official file ({digest}, expected {official}): {again} accept"
                " it as it is with --unverified-data"
            )
        digests.append(digest)
    return digests, stamps


def _read_marker(root: Path) -> list[dict[str, Any]]:
    """Return the archives that were unpacked into a folder; none if it is incomplete."""
    try:
        kept = json.loads((root / MARKER).read_bytes())["archives"]
        return [{key: entry[key] for key in ("name", "into", "digest", "stamp")} for entry in kept]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _is_kept(
    root: Path, archives: Sequence[Archive], expected: Sequence[str], digests: Sequence[str]
) -> bool:
    """Return whether these archives were unpacked before; a checksum of "" matches any."""
    kept = _read_marker(root)
    return (
        [(e["name"], e["into"]) for e in kept] == [(a.name, a.into) for a in archives]
        and all(d in ("", e["digest"]) for d, e in zip(digests, kept, strict=True))
        and _missing(root, expected) is None
    )


def _unpack_all(
    root: Path,
    archives: Sequence[Archive],
    files: Sequence[Path],
    digests: Sequence[str],
    stamps: Sequence[Any],
    expected: Sequence[str],
    request: DataRequest,
) -> None:
    """Unpack into a temporary folder next to `root`, which replaces it once it is complete."""
    # The lock is held, so temporary folders found here were left by a killed process.
    for leftover in root.parent.glob(f".{root.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    kept = []
    with new_folder(root) as stage:
        for archive, file, digest, stamp in zip(archives, files, digests, stamps, strict=True):
            unpack_into(file, stage / archive.into, archive.limit_bytes, request.progress)
            entry = {"name": archive.name, "into": archive.into}
            kept.append({**entry, "digest": digest, "stamp": stamp})
        if missing := _missing(stage, expected):
            raise UserError(f"{', '.join(map(str, files))}: {missing} is missing")
        write_atomic(stage / MARKER, json.dumps({"archives": kept}, indent=1))
        if root.exists():  # from another version, or incomplete
            with writing(root):
                root.replace(stage.with_name("old"))
