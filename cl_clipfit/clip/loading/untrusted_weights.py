"""Untrusted files of weights: what one claims to hold is compared with its size before it is read.

`.safetensors` files hold no code. Others are loaded by open_clip with
`torch.load(weights_only=True)`, which runs none either. But that reserves whatever memory a pickle
asks for (`bytearray(10**10)`), and hashes nested tuples without end. So a pickle is read here
before, by an unpickler that knows stand-ins alone: it calls nothing and reserves nothing.
"""

import math
import pickle
import zipfile
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import safetensors

from cl_clipfit.clip.loading.untrusted_config import check_config
from cl_clipfit.errors import UserError

SUFFIXES = (".safetensors", ".bin", ".pth")  # that open_clip looks for in a folder
LARGEST_PICKLE = 64 << 20  # bytes; the weights are stored outside of it
MOST_PACKED = 4  # times its size that a file may unpack to; weights hardly shrink
MOST_AXES, MOST_ALONG = 64, 1 << 48  # of a tensor, and its values along one of them
LONGEST_KEY = 100  # characters of a storage's key, which are the digits of a number
_ITEM_BYTES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2,
    "LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1,
    "BoolStorage": 1,
}  # fmt: skip
_PLAIN_OPCODES = (
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "BINPUT", "LONG_BINPUT",
    "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2",
    "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS",
)  # fmt: skip


def check_checkpoint(file: Path) -> None:
    """Refuse a file of weights that would run code, or that claims more than it holds.

    Args:
        file: ends in .safetensors, in .npz, or is a file of `torch.save`.

    Raises:
        UserError: it is such a file, or none of weights.
    """
    try:
        with file.open("rb") as opened:
            is_zip = opened.read(4) == b"PK\3\4"
            opened.seek(0)
            if file.suffix == ".safetensors":
                with safetensors.safe_open(file, "pt"):  # compares its header with the file
                    return
            if is_zip:
                _check_archive(file)
            elif file.suffix in (".npz", ".npy"):
                raise ValueError("no archive of arrays")
            else:
                _check_old_pickle(opened, file.stat().st_size)
    except UserError:
        raise
    except Exception as error:  # a damaged file may raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, KeyError | IndexError):  # of the unpickler, lost in other data
            reason = "no safetensors, and nothing that torch.save writes"
        raise UserError(f"cannot load {file} as weights: {reason}") from error


def _check_archive(file: Path) -> None:
    """Check what `torch.save` (or NumPy) writes: pickles, and bytes of weights outside of them."""
    with zipfile.ZipFile(file) as archive:
        held, size = sum(m.file_size for m in archive.infolist()), file.stat().st_size
        # PyTorch finds members whatever their case.
        members = {m.filename.lower(): m.file_size for m in archive.infolist()}
        if any("/code/" in f"/{name}" for name in members):
            raise UserError(
                f"{file} is a TorchScript archive: it holds a program, which is not run. Take the"
                " weights alone; those that OpenAI published so are the tag 'openai' of open_clip,"
                " as --model ViT-B-16-quickgelu:openai"
            )
        if held > MOST_PACKED * size:
            raise ValueError(f"{size:,} bytes that unpack to {held:,}")
        for member in archive.infolist():
            name = member.filename.lower()
            if name == "data.pkl" or name.endswith("/data.pkl"):
                if member.file_size > LARGEST_PICKLE:
                    raise ValueError(f"{name} has {member.file_size:,} bytes")
                folder = name.removesuffix("data.pkl")
                with archive.open(member) as content:
                    reader = _Reader(content)
                    reader.load()
                for key, count in reader.storages.items():
                    if members.get(f"{folder}data/{key.lower()}", -1) < count:
                        raise ValueError(f"it holds fewer values than it says ({count:,} bytes)")


def _check_old_pickle(file: IO[bytes], size: int) -> None:
    """Check what `torch.save` wrote before PyTorch 1.6: five pickles in a row, then the weights."""
    storages: dict[str, int] = {}
    for _ in range(4):
        reader = _Reader(file)
        reader.load()
        storages |= reader.storages
    keys = _Reader(file).load()
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise ValueError("nothing that torch.save writes")
    if sum(storages.values()) > size:
        raise ValueError(f"it says that it holds {sum(storages.values()):,} bytes, of {size:,}")


class _Mapping(dict[Any, Any]):
    """A mapping of names, or of numbers as optimisers have; other keys may hash without end."""

    def __setitem__(self, key: Any, value: Any) -> None:
        # Of longer numbers very many have the same hash.
        if type(key) is not str and not (isinstance(key, int) and abs(key) < MOST_ALONG):
            raise pickle.UnpicklingError("a key that is not a name")
        super().__setitem__(key, value)

    def __setstate__(self, state: Any) -> None:
        """Ignore the version metadata that PyTorch attaches to a state dict."""
        if not isinstance(state, _Mapping):
            raise pickle.UnpicklingError("a mapping of an unknown state")


class _Storage(NamedTuple):
    """Where values lie: how many of them. A pickle cannot change it."""

    values: int


def _are_sizes(values: Any) -> bool:
    """Return whether these are few numbers and none is huge: others may be printed without end."""
    return (
        type(values) is tuple
        and len(values) <= MOST_AXES
        and all(type(n) is int and 0 <= n < MOST_ALONG for n in values)
    )


class _Call(NamedTuple):
    """What a pickle may call: its own name, as data. A pickle cannot change it."""

    name: str

    def __call__(self, *arguments: Any) -> Any:
        if self.name == "OrderedDict" and not arguments:  # its keys come later, one by one
            return _Mapping()
        if self.name == "_rebuild_parameter":
            return arguments[0]
        if self.name != "_rebuild_tensor_v2":
            raise pickle.UnpicklingError(f"it asks to call {self.name}, which is refused")
        storage, offset, shape, strides = arguments[:4]
        if not (type(storage) is _Storage and _are_sizes((offset,))
                and _are_sizes(shape) and _are_sizes(strides)):  # fmt: skip
            raise pickle.UnpicklingError("a tensor whose shape is not a shape")
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if math.prod(shape) > storage.values or (0 not in shape and last >= storage.values):
            raise pickle.UnpicklingError(f"a tensor {shape} made of {storage.values:,} values")
        return None


class _Reader(pickle._Unpickler):
    """Reads a pickle of weights without calling anything, or reserving memory for what it claims.

    Attributes:
        storages: bytes of each storage, by its key.
    """

    append: Any  # to what was read; set while it reads

    dispatch: ClassVar[Any] = {
        code: pickle._Unpickler.dispatch[code]
        for code in (getattr(pickle, name)[0] for name in _PLAIN_OPCODES)
    }

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.storages: dict[str, int] = {}

    def load_empty_dictionary(self) -> None:
        """Start a mapping."""
        self.append(_Mapping())

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dictionary

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in for a name, or refuse it."""
        known = (
            (module == "collections" and name == "OrderedDict")
            or (module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"))
            or (module == "torch" and name in _ITEM_BYTES)
        )
        if not known:
            raise pickle.UnpicklingError(f"it asks to run {module}.{name}, which is refused")
        return _Call(name)

    def persistent_load(self, pid: Any) -> Any:
        """Note a storage, whose bytes lie elsewhere in the file."""
        kind, of, key, _, count = pid[:5]
        item = _ITEM_BYTES.get(of.name) if type(of) is _Call else None
        known = type(key) is str and len(key) < LONGEST_KEY and _are_sizes((count,))
        # Old files have a sixth entry for views of a storage; none of CLIP is that old.
        if kind != "storage" or item is None or not known or pid[5:] not in ((), (None,)):
            raise pickle.UnpicklingError("weights of an unknown kind")
        self.storages[key] = max(self.storages.get(key, 0), count * item)
        return _Storage(count)


def check_folder(folder: Path) -> None:
    """Check the configuration and all weights of a model's folder, for `local-dir:FOLDER`.

    Raises:
        UserError: there are no weights, one of them is refused, or the configuration asks for a
            model far larger than they are.
    """
    files = sorted(f for f in folder.glob("*") if f.suffix in SUFFIXES and f.is_file())
    config = folder / "open_clip_config.json"
    if not folder.is_dir() or not config.is_file():
        return  # open_clip says so
    if not files:
        raise UserError(f"{folder} holds no weights: expected {', '.join(SUFFIXES)}")
    for file in files:
        check_checkpoint(file)
    check_config(config, max(file.stat().st_size for file in files))
