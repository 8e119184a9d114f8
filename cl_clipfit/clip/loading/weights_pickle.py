"""The pickle of a file of weights, read with stand-ins: nothing is called and nothing reserved.

`torch.load(weights_only=True)` runs no code either. But it reserves whatever memory a pickle asks
for (`bytearray(10**10)`), hashes nested tuples without end, and does not read
`torch.save(..., pickle_protocol=4)`.
"""

import math
import pickle
from typing import IO, Any, ClassVar, NamedTuple

import torch

WEIGHTS_ALONE = "save the weights alone: torch.save(model.state_dict(), FILE)"
MOST_AXES, MOST_ALONG = 64, 1 << 48  # of a tensor, and its values along one of them
LONGEST_KEY = 100  # characters of a storage's key, which are the digits of a number
_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}  # fmt: skip
_PLAIN_OPCODES = (
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "BINPUT", "LONG_BINPUT",
    "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2",
    "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS",
    "FRAME", "MEMOIZE", "SHORT_BINUNICODE", "STACK_GLOBAL",  # of protocol 4
)  # fmt: skip


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
    """Where values lie: their key, type and number. A pickle cannot change it."""

    key: str
    dtype: torch.dtype
    values: int


class StoredTensor(NamedTuple):
    """A stand-in for a tensor: where its values lie. A pickle cannot change it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


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
        return StoredTensor(storage, offset, shape, strides)


class PickleReader(pickle._Unpickler):
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
            or (module == "torch" and name in _DTYPES)
        )
        if not known:
            raise pickle.UnpicklingError(
                f"it asks to run {module}.{name:.60}, which is refused: {WEIGHTS_ALONE}"
            )
        return _Call(name)

    def persistent_load(self, pid: Any) -> Any:
        """Note a storage, whose bytes lie elsewhere in the file."""
        kind, of, key, _, count = pid[:5]
        dtype = _DTYPES.get(of.name) if type(of) is _Call else None
        known = type(key) is str and len(key) < LONGEST_KEY and _are_sizes((count,))
        # Old files have a sixth entry for views of a storage; none of CLIP is that old.
        if kind != "storage" or dtype is None or not known or pid[5:] not in ((), (None,)):
            raise pickle.UnpicklingError("weights of an unknown kind")
        self.storages[key] = max(self.storages.get(key, 0), count * dtype.itemsize)
        return _Storage(key, dtype, count)
