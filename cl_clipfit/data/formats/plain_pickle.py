"""Pickles of other people, read without running anything they ask for."""

import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np


class PickledBytes:
    """What a pickled array says of itself. Only bytes that are in the file are ever read."""

    __slots__ = ("pixels",)

    def __init__(self) -> None:
        self.pixels: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, column_major, raw = state
        if not isinstance(dtype, _Bytes) or column_major:
            raise pickle.UnpicklingError("an array of another type than uint8, row by row")
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # written by Python 2
        self.pixels = np.frombuffer(raw, np.uint8).reshape(shape)


class _Bytes:
    """The element type uint8, the only one that images have."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Take no notice: byte order and the like mean nothing to bytes."""


class _Call:
    """A function that a pickle may call, and cannot change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it asks to change a function, which is refused")


def _dtype(name: Any, *_: Any) -> _Bytes:
    if name not in ("u1", "|u1"):
        raise pickle.UnpicklingError(f"an array of {name}, expected uint8")
    return _Bytes()


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _refuse_array(*_: Any) -> None:
    raise pickle.UnpicklingError("it asks to build an array over memory, which is refused")


_ARRAY = _Call(lambda *_: PickledBytes())
# Stand-ins for what NumPy's pickles name: NumPy's own would build arrays over any address.
_ADMITTED = {
    ("numpy", "ndarray"): _Call(_refuse_array),  # named in every array's pickle, never called
    ("numpy", "dtype"): _Call(_dtype),
    ("numpy.core.multiarray", "_reconstruct"): _ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): _ARRAY,
    ("_codecs", "encode"): _Call(_latin1),  # how Python 3 writes bytes for Python 2
}


class _Mapping(dict[Any, Any]):
    """What a pickle's mapping becomes; tuples of tuples as its keys would hash without end."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, str | bytes | int):
            raise pickle.UnpicklingError("a key that is no text")
        super().__setitem__(key, value)


class PlainUnpickler(pickle._Unpickler):
    """Admits NumPy arrays and plain containers; a pickle that would run code is refused.

    It is the unpickler written in Python: a few bytes make the one in C reserve memory for billions
    of remembered objects, before anything is read.
    """

    append: Any  # to what was read; set while it reads
    pop_mark: Any

    dispatch: ClassVar[Any] = {
        code: read
        for code, read in pickle._Unpickler.dispatch.items()
        if code not in (pickle.BYTEARRAY8[0], pickle.FROZENSET[0], pickle.ADDITEMS[0])
    }

    def load_empty_dictionary(self) -> None:
        """Start a mapping."""
        self.append(_Mapping())

    def load_dict(self) -> None:
        """Make a mapping of what was read since its mark."""
        items = self.pop_mark()
        found = _Mapping()
        for key, value in zip(items[::2], items[1::2], strict=True):
            found[key] = value
        self.append(found)

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dictionary
    dispatch[pickle.DICT[0]] = load_dict

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name, or refuse it."""
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks to run {module}.{name}, which is refused")
        return _ADMITTED[module, name]
