"""Files of weights from strangers: what is in one is checked before any of it is read as weights.

`torch.save` writes pickles, which name functions to call, and sizes to reserve. They are read here
once by an unpickler that knows stand-ins alone: it calls nothing, and finds out what open_clip and
`torch.load(weights_only=True)` would meet. `.safetensors` files hold no code.
"""

import json
import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

import safetensors

from cl_clipfit.errors import UserError
from cl_clipfit.files import read_bytes

SUFFIXES = (".safetensors", ".bin", ".pth")  # that open_clip looks for in a folder
LARGEST_PICKLE = 64 << 20  # bytes; the weights themselves lie beside it
MOST_PACKED = 4  # times its size that a file may unpack to; weights hardly shrink
MOST_SIZE = 1_000_000  # of one number in a model's configuration
MOST_BLOCKS = 1_000
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
    """Check what `torch.save` (or NumPy) writes: pickles and, beside them, bytes of weights."""
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member.file_size for member in archive.infolist()}
        held, size = sum(members.values()), file.stat().st_size
        if any("/code/" in f"/{name}" for name in members):
            raise UserError(
                f"{file} is a TorchScript archive: it holds a program, which is not run. Take the"
                " weights alone; those that OpenAI published so are the tag 'openai' of open_clip,"
                " as --model ViT-B-16-quickgelu:openai"
            )
        if held > MOST_PACKED * size:
            raise ValueError(f"{size:,} bytes that unpack to {held:,}")
        for name in members:
            if name == "data.pkl" or name.endswith("/data.pkl"):
                if members[name] > LARGEST_PICKLE:
                    raise ValueError(f"{name} has {members[name]:,} bytes")
                folder = name.removesuffix("data.pkl")
                with archive.open(name) as content:
                    reader = _Reader(content)
                    reader.load()
                for key, count in reader.storages.items():
                    if members.get(f"{folder}data/{key}", -1) < count:
                        raise ValueError(f"it holds fewer values than it says ({count:,} bytes)")


def _check_old_pickle(file: IO[bytes], size: int) -> None:
    """Check what `torch.save` wrote before PyTorch 1.6: four pickles in a row, then the weights."""
    storages: dict[str, int] = {}
    for _ in range(4):
        reader = _Reader(file)
        reader.load()
        storages |= reader.storages
    if sum(storages.values()) > size:
        raise ValueError(f"it says that it holds {sum(storages.values()):,} bytes, of {size:,}")


class _Mapping(dict[Any, Any]):
    """A mapping of names, or of numbers as optimisers have; other keys may hash without end."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, str | int):
            raise pickle.UnpicklingError("a key that is no name")
        super().__setitem__(key, value)

    def __setstate__(self, state: Any) -> None:
        """Take no notice of the versions that PyTorch keeps beside a state."""


class _Storage:
    """Where values lie: how many of them, of how many bytes."""

    __slots__ = ("count", "item")

    def __init__(self, count: int, item: int) -> None:
        self.count, self.item = count, item

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it asks to change a storage, which is refused")


class _Call:
    """What a pickle may call: its own name, as data."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *arguments: Any) -> Any:
        if self.name == "OrderedDict":
            return _Mapping()
        if self.name == "_rebuild_parameter":
            return arguments[0]
        if self.name != "_rebuild_tensor_v2":
            raise pickle.UnpicklingError(f"it asks to call {self.name}, which is refused")
        storage, offset, shape = arguments[:3]
        if not all(type(n) is int and n >= 0 for n in (offset, *shape)):
            raise pickle.UnpicklingError(f"a tensor of shape {shape}")
        if math.prod(shape) > storage.count:
            raise pickle.UnpicklingError(f"a tensor {shape} made of {storage.count:,} values")
        return None

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it asks to change a function, which is refused")


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
        item = _ITEM_BYTES.get(of.name)
        if kind != "storage" or item is None or type(count) is not int or count < 0:
            raise pickle.UnpicklingError("weights of an unknown kind")
        self.storages[str(key)] = max(self.storages.get(str(key), 0), count * item)
        return _Storage(count, item)


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


def check_config(file: Path, size: int) -> None:
    """Refuse a configuration of a model far larger than its weights, before it is built.

    Args:
        file: `open_clip_config.json`.
        size: bytes of the weights.

    Raises:
        UserError: it is such a one, asks for code of its own, or is no JSON.
    """
    try:
        model = json.loads(read_bytes(file))["model_cfg"]
        towers = [part for part in model.values() if isinstance(part, dict)]
        numbers = [n for part in (model, *towers) for n in _numbers(part)]
        values = sum(_least_values(tower) for tower in towers)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is no configuration of a model: {error!r:.200}") from error
    if _runs_code(model):
        raise UserError(
            f"{file} has trust_remote_code: it would run code that comes with the model: take it"
            " out if the tokenizer works without"
        )
    if max(numbers, default=0) > MOST_SIZE or values > size:  # no value takes less than a byte
        raise UserError(f"{file} asks for a model far larger than its weights, {size:,} bytes")


def _runs_code(value: Any) -> bool:
    """Tell whether a configuration asks for code of its own, anywhere in it."""
    if isinstance(value, list):
        return any(map(_runs_code, value))
    if not isinstance(value, dict):
        return False
    return bool(value.get("trust_remote_code")) or any(map(_runs_code, value.values()))


def _numbers(part: Mapping[str, Any]) -> Iterator[float]:
    for value in part.values():
        yield from (n for n in (value if isinstance(value, list) else [value])
                    if isinstance(n, int | float))  # fmt: skip


def _least_values(tower: Mapping[str, Any]) -> int:
    """Return how many values a transformer of such a configuration has at least."""
    layers, width = tower.get("layers", 0), tower.get("width", 0)
    if isinstance(layers, list):  # of a ResNet
        layers = sum(layers)
    if layers > MOST_BLOCKS:
        return layers * MOST_SIZE
    return 4 * layers * width**2 + tower.get("vocab_size", 0) * width
