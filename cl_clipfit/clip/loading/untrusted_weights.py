"""Untrusted files of weights: what one claims to hold is compared with its size before it is read.

Files of safetensors hold no code; the pickle of others is read with stand-ins (`weights_pickle`).
"""

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import safetensors

from cl_clipfit.clip.loading.weights_pickle import WEIGHTS_ALONE, PickleReader
from cl_clipfit.errors import UserError

LARGEST_PICKLE = 64 << 20  # bytes; the weights are stored outside of it
MOST_PACKED = 4  # times its size that a file may unpack to; weights hardly shrink


def check_checkpoint(file: Path) -> None:
    """Refuse a file of weights that would run code, or that claims more than it holds.

    Args:
        file: of safetensors, `torch.save` or NumPy, whatever its name.

    Raises:
        UserError: it is such a file, or none of weights.
    """
    with refusing(file), file.open("rb") as opened:
        kind = kind_of(opened)
        if kind == "zip":
            read_archive(file)
        elif kind == "pickle":
            _check_old_pickle(opened, file.stat().st_size)
        else:
            with safetensors.safe_open(file, "pt"):  # compares its header with the file
                return


@contextlib.contextmanager
def refusing(file: Path) -> Iterator[None]:
    """Turn whatever a damaged file of weights raises into a `UserError` that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, KeyError | IndexError | EOFError):  # of an unpickler that is lost
            reason = "neither a safetensors file nor one of torch.save"
        if reason.startswith("Weights only load failed"):  # a page of PyTorch's
            reason = f"torch.load(weights_only=True) refuses it: {WEIGHTS_ALONE}"
        raise UserError(f"cannot load {file} as weights: {reason}") from error


def kind_of(opened: IO[bytes]) -> Literal["zip", "safetensors", "pickle"]:
    """Return what a file of weights is by its first bytes; it is then read from its start."""
    head = opened.read(9)
    opened.seek(0)
    if head.startswith(b"PK\3\4"):
        return "zip"
    return "safetensors" if head[8:] == b"{" else "pickle"


class Archive(NamedTuple):
    """What an archive of `torch.save` holds, with stand-ins for tensors.

    Attributes:
        content: what was saved.
        members: names in the archive of the values of each storage.
    """

    content: Any
    members: dict[str, str]


def read_archive(file: Path) -> Archive | None:
    """Read what `torch.save` writes, except the values; return None for an archive of NumPy.

    Raises:
        ValueError: it claims more than it holds, or it holds more than weights.
        UserError: it holds a program.
    """
    with zipfile.ZipFile(file) as archive:
        held, size = sum(m.file_size for m in archive.infolist()), file.stat().st_size
        # PyTorch finds members whatever their case.
        members = {m.filename.lower(): m for m in archive.infolist()}
        if any("/code/" in f"/{name}" for name in members):
            raise UserError(
                f"{file} is a TorchScript archive: it holds a program, which is not run. Save its"
                " weights, torch.jit.load(FILE).state_dict(); those that OpenAI published so are"
                " the tag 'openai' of open_clip, as --model ViT-B-16-quickgelu:openai"
            )
        if held > MOST_PACKED * size:
            raise ValueError(f"{size:,} bytes that unpack to {held:,}")
        pickles = [n for n in members if n == "data.pkl" or n.endswith("/data.pkl")]
        if not pickles and any(name.endswith(".npy") for name in members):
            return None
        if len(pickles) != 1:
            raise ValueError(f"it is an archive with {len(pickles)} checkpoints of torch.save")
        (name,) = pickles
        if members[name].file_size > LARGEST_PICKLE:
            raise ValueError(f"{name} has {members[name].file_size:,} bytes")
        with archive.open(members[name]) as opened:
            return _read_pickle(opened, name.removesuffix("data.pkl"), members)


def _read_pickle(opened: IO[bytes], folder: str, members: dict[str, zipfile.ZipInfo]) -> Archive:
    reader, values = PickleReader(opened), {}
    try:
        content = reader.load()
    except (KeyError, IndexError) as error:  # of an object that has no stand-in
        raise ValueError(f"it holds more than weights: {WEIGHTS_ALONE}") from error
    for key, count in reader.storages.items():
        member = members.get(f"{folder}data/{key.lower()}")
        if member is None or member.file_size < count:
            raise ValueError(f"it holds fewer values than it says ({count:,} bytes)")
        values[key] = member.filename
    return Archive(content, values)


def _check_old_pickle(file: IO[bytes], size: int) -> None:
    """Check what `torch.save` wrote before PyTorch 1.6: five pickles in a row, then the weights."""
    storages: dict[str, int] = {}
    for _ in range(4):
        reader = PickleReader(file)
        reader.load()
        storages |= reader.storages
    keys = PickleReader(file).load()
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise ValueError("nothing that torch.save writes")
    if sum(storages.values()) > size:
        raise ValueError(f"it says that it holds {sum(storages.values()):,} bytes, of {size:,}")
