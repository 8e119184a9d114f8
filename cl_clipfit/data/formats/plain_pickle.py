"""Untrusted pickles, read without running any code they ask for."""

import pickle
from collections.abc import Callable
from typing import IO, Any, ClassVar

import numpy as np


class PickledBytes:
    """A pickled array. Only bytes that are in the file are ever read."""

    __slots__ = ("_encode", "pixels")

    def __init__(self, encode: Callable[[str], bytes]) -> None:
        self._encode = encode
        self.pixels: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, column_major, raw = state
        if not isinstance(dtype, _Bytes) or column_major:
            raise pickle.UnpicklingError("an array that is not uint8 in row-major order")
        raw = self._encode(raw) if isinstance(raw, str) else raw  # written by Python 2
        self.pixels = np.frombuffer(raw, np.uint8).reshape(shape)


class _Bytes:
    """The element type uint8, the only one that images use."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Ignore the state: byte order and the like do not apply to bytes."""


class _Call:
    """A function that a pickle may call but not change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it asks to change a function, which is refused")


def _dtype(name: Any, *_: Any) -> _Bytes:
    if name not in ("u1", "|u1"):
        shown = name if isinstance(name, str) else "another type"  # tuples may print without end
        raise pickle.UnpicklingError(f"an array of {shown}, expected uint8")
    return _Bytes()


class _Latin1:
    """Encode strings to bytes, never more of them than the file itself holds."""

    def __init__(self, file: IO[bytes]) -> None:
        self._tell, self._start, self._encoded = file.tell, file.tell(), 0

    def __call__(self, text: Any, encoding: Any = "latin1") -> bytes:
        if not (type(text) is type(encoding) is str and encoding == "latin1"):
            raise pickle.UnpicklingError("bytes in an encoding other than latin1")
        self._encoded += len(text)
        if self._encoded > self._tell() - self._start:
            raise pickle.UnpicklingError("it asks for more bytes than it holds")
        return text.encode("latin1")


def _refuse_array(*_: Any) -> None:
    raise pickle.UnpicklingError("it asks to build an array over memory, which is refused")


# Stand-ins for the functions that NumPy's pickles name, which could build arrays at any address.
_ADMITTED = {
    ("numpy", "ndarray"): _Call(_refuse_array),  # named in every array's pickle, never called
    ("numpy", "dtype"): _Call(_dtype),
}


class _Mapping(dict[Any, Any]):
    """A pickle's mapping; keys that are nested tuples could take forever to hash."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, str | bytes):  # very many numbers have the same hash
            raise pickle.UnpicklingError("a key that is not text")
        super().__setitem__(key, value)


class PlainUnpickler(pickle._Unpickler):
    """Accept NumPy arrays and plain containers; refuse a pickle that would run code.

    This extends the pure-Python unpickler: a few bytes can make the C one reserve memory for
    billions of memoized objects before anything is read.
    """

    append: Any  # to the stack; set while reading
    pop_mark: Any

    def __init__(self, file: IO[bytes], **options: Any) -> None:
        super().__init__(file, **options)
        encode = _Latin1(file)  # holds no reference to this reader, which can then be freed
        array = _Call(lambda *_: PickledBytes(encode))
        self._admitted = _ADMITTED | {
            ("numpy.core.multiarray", "_reconstruct"): array,
            ("numpy._core.multiarray", "_reconstruct"): array,
            ("_codecs", "encode"): _Call(encode),  # how Python 3 writes bytes for Python 2
        }

    dispatch: ClassVar[Any] = {
        code: read
        for code, read in pickle._Unpickler.dispatch.items()
        if code not in (pickle.BYTEARRAY8[0], pickle.FROZENSET[0], pickle.ADDITEMS[0])
    }

    def load_empty_dictionary(self) -> None:
        """Start a mapping."""
        self.append(_Mapping())

    def load_dict(self) -> None:
        """Build a mapping from the items since its mark."""
        items = self.pop_mark()
        mapping = _Mapping()
        for key, value in zip(items[::2], items[1::2], strict=True):
            mapping[key] = value
        self.append(mapping)

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dictionary
    dispatch[pickle.DICT[0]] = load_dict

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name, or refuse it."""
        if (module, name) not in self._admitted:
            raise pickle.UnpicklingError(f"it asks to run {module}.{name}, which is refused")
        return self._admitted[module, name]
