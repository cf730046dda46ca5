"""NumPy's names in a pickle, and how their recorded calls become arrays."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from .content import Resolver, Unsupported
from .display import show_text
from .safe_pickle import Record, Recorder, RefusedContent, make_foreign

_NUMBER_CODE = re.compile(r"[<>|=]?(\?|[biufcSU]\d{1,6})")
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")


def _build_dtype(resolver: Resolver, record: Record) -> tuple[Any, int]:
    """A `numpy.dtype`: a code such as "f4", and a byte order as state."""
    code = _read_text(record.arguments[0])
    if not _NUMBER_CODE.fullmatch(code):
        return Unsupported(f"an array of type '{show_text(code)}'"), 0
    order = "=" if record.state is None else _read_text(record.state[1])
    if order not in ("<", ">", "|", "="):
        raise RefusedContent(f"it holds an array with byte order '{show_text(order)}'")
    dtype = np.dtype(code.lstrip("<>|="))
    return dtype.newbyteorder(order), 0  # type: ignore[arg-type]


def _read_text(value: Any) -> str:
    text = value.decode("ascii") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        raise RefusedContent("the type of an array is not a text")
    return text


def _build_array(resolver: Resolver, record: Record) -> tuple[Any, int]:
    """`_reconstruct` makes an empty array; its shape and bytes come as state."""
    if record.state is None:
        return np.zeros(0, np.float32), 0
    shape, dtype, fortran, data = record.state[-4:]
    return _make_array(resolver, shape, dtype, data, "F" if fortran else "C")


def _build_from_buffer(resolver: Resolver, record: Record) -> tuple[Any, int]:
    data, dtype, shape, order = record.arguments
    return _make_array(resolver, shape, dtype, data, "F" if order == "F" else "C")


def _build_scalar(resolver: Resolver, record: Record) -> tuple[Any, int]:
    dtype, data = record.arguments
    array, size = _make_array(resolver, (), dtype, data, "C")
    return (array.item() if isinstance(array, np.ndarray) else None), size


def _make_array(
    resolver: Resolver, shape: Any, dtype: Any, data: Any, order: Any
) -> tuple[np.ndarray | Unsupported, int]:
    """Rebuild an array. Raises `ValueError` if bytes and shape disagree."""
    kind, content = resolver.resolve(dtype), resolver.resolve(data)
    if isinstance(content, str):  # a Python 2 byte string, read as latin1
        content = content.encode("latin1")
    if isinstance(kind, Unsupported):
        return kind, 0
    if not isinstance(kind, np.dtype) or not isinstance(content, bytes | bytearray):
        raise RefusedContent("it holds an array whose numbers are no bytes")
    flat = np.frombuffer(content, kind) if content else np.empty(0, kind)
    array = flat.reshape(tuple(int(n) for n in shape), order=order)
    # a writable copy in this machine's byte order, as torch requires
    return np.array(array, dtype=kind.newbyteorder("="), order="C"), array.nbytes


ARRAY_NAMES: dict[str, Any] = {
    **{f"{module}._reconstruct": Recorder(_build_array) for module in _MULTIARRAY},
    **{f"{module}.scalar": Recorder(_build_scalar) for module in _MULTIARRAY},
    **{f"{module}._frombuffer": Recorder(_build_from_buffer) for module in _NUMERIC},
    "numpy.ndarray": make_foreign("numpy.ndarray"),
    "numpy.dtype": Recorder(_build_dtype),
}
