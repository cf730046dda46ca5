"""Stand-ins for the names in a pickle: they carry data and can never run anything.

A pickle is a small program: it looks up globals by name and calls them. Here no name is ever
looked up. The few names that arrays need are replaced by objects of this file, which rebuild the
array from its bytes; the name of any other class is replaced by an empty class of the same name
that keeps nothing, and calling it is an error.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

_NUMBER_CODE = re.compile(r"[<>|=]?(\?|[biufcSU]\d+)")
# Values, not calls with an effect; training scripts save them in a file's metadata.
_HARMLESS_CALLS = frozenset(
    f"{module}.{name}"
    for module in ("pathlib", "pathlib._local")
    for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
) | {"datetime.datetime", "datetime.date", "datetime.timedelta"}


class RefusedGlobal(pickle.UnpicklingError):
    """A pickle names something that is not data."""


class _Sealed(type):
    """A class that a pickle cannot change: `BUILD` would otherwise set attributes on it."""

    def __setattr__(cls, name: str, value: Any) -> NoReturn:
        raise RefusedGlobal(f"the file changes attribute {name!r} of {cls.__name__}")


class _Uncallable(_Sealed):
    """A class that makes instances only by `__new__`, as pickle's `NEWOBJ` does."""

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise RefusedGlobal(f"loading the file would run code: it calls {cls.__name__}")


class Foreign(metaclass=_Sealed):
    """The empty stand-in for an instance of any other class."""

    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Foreign:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def make_foreign(name: str) -> Callable[..., Foreign]:
    """Make the empty class that replaces the class or function called `name`."""
    metaclass = _Sealed if name in _HARMLESS_CALLS else _Uncallable
    return metaclass(name, (Foreign,), {"__slots__": (), "__module__": __name__})


class InertDtype(metaclass=_Sealed):
    """A `numpy.dtype` in a pickle: a code such as "f4" and a byte order."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not _NUMBER_CODE.fullmatch(code):
            raise RefusedGlobal(f"the file holds an array of type {code!r}, not of numbers")
        self._code, self._order = code.lstrip("<>|="), "="

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise RefusedGlobal(f"the file holds an array with byte order {order!r}")
        self._order = order

    def build(self) -> np.dtype:
        return np.dtype(self._code).newbyteorder(self._order)  # type: ignore[arg-type]


class InertArray(metaclass=_Sealed):
    """A `numpy.ndarray` in a pickle."""

    __slots__ = ("_data", "_dtype", "_fortran", "_shape")

    def __init__(self, *args: Any) -> None:
        self._fill((0,), InertDtype("f4"), False, b"")

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran, data = state[-4:]
        self._fill(shape, dtype, fortran, data)

    def _fill(self, shape: Any, dtype: Any, fortran: Any, data: Any) -> None:
        if isinstance(data, str):  # a Python 2 byte string, read as latin1
            data = data.encode("latin1")
        if not isinstance(dtype, InertDtype) or not isinstance(data, bytes | bytearray):
            raise RefusedGlobal("the file holds an array of objects, not of numbers")
        self._shape = tuple(int(n) for n in shape)
        self._dtype, self._fortran, self._data = dtype, bool(fortran), data

    def build(self) -> np.ndarray:
        """Rebuild the array. Raises `ValueError` if bytes and shape disagree."""
        dtype = self._dtype.build()
        flat = np.frombuffer(self._data, dtype) if self._data else np.empty(0, dtype)
        array = flat.reshape(self._shape, order="F" if self._fortran else "C")
        # a writable copy in this machine's byte order, as torch requires
        return np.array(array, dtype=dtype.newbyteorder("="), order="C")


class _Function(metaclass=_Sealed):
    """A function of this file under a name that pickles use."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise RefusedGlobal(f"the file changes attribute {name!r} of a function")

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def _build_array_from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> InertArray:
    array = InertArray()
    array.__setstate__((shape, dtype, order == "F", data))
    return array


def _build_scalar(dtype: Any, data: Any) -> Any:
    array = InertArray()
    array.__setstate__(((), dtype, False, data))
    return array.build().item()


def _encode_latin1(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedGlobal(f"the file encodes text as {encoding!r}")
    return text.encode("latin1")


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
ARRAY_GLOBALS: dict[str, Any] = {
    # shape and bytes come with `__setstate__`
    **{f"{module}._reconstruct": _Function(InertArray) for module in _MULTIARRAY},
    **{f"{module}.scalar": _Function(_build_scalar) for module in _MULTIARRAY},
    **{f"{module}._frombuffer": _Function(_build_array_from_buffer) for module in _NUMERIC},
    "numpy.ndarray": InertArray,
    "numpy.dtype": InertDtype,
}
_PICKLE_GLOBALS: dict[str, Any] = {
    **ARRAY_GLOBALS,
    "_codecs.encode": _Function(_encode_latin1),
    "builtins.bytes": _Function(lambda: b""),
    "__builtin__.bytes": _Function(lambda: b""),
    "collections.OrderedDict": OrderedDict,
}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays, containers and numbers; every other name raises `RefusedGlobal`."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        # Detectron2's zoo files were written by Python 2
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _PICKLE_GLOBALS[f"{module}.{name}"]
        except KeyError:
            raise RefusedGlobal(
                f"it names {module}.{name}, but a .pkl may hold only arrays, containers and numbers"
            ) from None


def list_globals(path: Path) -> set[str]:
    """List the names that a torch file's pickles look up, without running them.

    Returns:
        Names such as "torch._utils._rebuild_tensor_v2".
    """
    if is_archive(path):
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
            return {g for name in pickles for g in _scan(io.BytesIO(archive.read(name)))}
    with path.open("rb") as file:
        return set(_scan(file))


def is_archive(path: Path) -> bool:
    """Return True if a file begins as a zip archive, which is torch's own test."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _scan(file: Any) -> list[str]:
    # The old format is several pickles in a row, then raw bytes that end the scan.
    names: list[str] = []
    try:
        while True:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    names.append(str(argument).replace(" ", ".", 1))
    except Exception:
        return names


def resolve(tree: Any, memo: dict[int, Any] | None = None) -> Any:
    """Replace inert arrays in nested containers by NumPy arrays, and drop foreign objects."""
    memo = {} if memo is None else memo
    if id(tree) in memo:
        return memo[id(tree)]
    result: Any = tree
    if isinstance(tree, InertArray | InertDtype):
        result = tree.build()
    elif isinstance(tree, Foreign | _Function | _Sealed):
        result = None
    elif isinstance(tree, dict):
        result = {
            key: resolve(value, memo)
            for key, value in dict.items(tree)
            if not isinstance(value, Foreign | _Function | _Sealed)
        }
    elif type(tree) in (list, tuple, set):
        result = type(tree)(resolve(value, memo) for value in tree)
    memo[id(tree)] = result
    return result
