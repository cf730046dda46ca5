"""Reads the arrays of a MATLAB file; nothing else in it is looked at."""

from __future__ import annotations

import struct
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instancezoo.optional import import_optional

from .safe_pickle import RefusedContent

# MATLAB's class of an array -> bytes of a value
_SIZES = {
    **{"double": 8, "single": 4, "logical": 1},
    **{f"{sign}int{8 * size}": size for sign in ("", "u") for size in (1, 2, 4, 8)},
}
# Weights are hardly compressed; a small file of zeros may be.
_MAX_GROWTH = 4
_ALLOWANCE = 64 * 2**20  # bytes
_HEADER_OF_7_3 = b"MATLAB 7.3"
# Version 5: the header, whose last bytes tell the byte order; then elements of a tag and content.
_HEADER_BYTES, _LITTLE_ENDIAN = 128, b"IM"
_TAG_BYTES, _COMPRESSED = 8, 15
_CHUNK = 2**20  # bytes
_TOO_LARGE = "its arrays would take many times the size of the file"


def read_mat_file(path: Path) -> dict[str, NDArray[Any]]:
    """Read the numeric arrays of a file of MATLAB's versions 4 to 7.

    Texts, cells, structures, functions and objects in it are left out.

    Returns:
        Name -> array; vectors are matrices of one row.

    Raises:
        MissingPackageError: scipy is not installed.
        RefusedContent: the arrays would take many times the file's size in memory.
        Exception: whatever scipy raises for a file that is damaged or none of MATLAB's.
    """
    io = import_optional("scipy.io", "'instancezoo[bottomup]'", f"'{path}', a MATLAB file,")
    with path.open("rb") as file:
        if file.read(len(_HEADER_OF_7_3)) == _HEADER_OF_7_3:
            raise ValueError("it is of version 7.3; save it in MATLAB with -v7")
    most = _MAX_GROWTH * path.stat().st_size + _ALLOWANCE
    _check_compressed(path, most)
    wanted = {
        name: prod(shape) * _SIZES[kind]
        for name, shape, kind in io.whosmat(str(path), appendmat=False)
        if kind in _SIZES
    }
    if any(size < 0 for size in wanted.values()) or sum(wanted.values()) > most:
        raise RefusedContent(_TOO_LARGE)
    found = io.loadmat(str(path), appendmat=False, variable_names=list(wanted))
    return {name: _to_native(found[name]) for name in wanted if name in found}


def _check_compressed(path: Path, most: int) -> None:
    """Raise `RefusedContent` if compressed elements hold more bytes than `most`.

    The shapes that an element names say nothing of the bytes that reading it takes.
    """
    total = 0
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
        if 0 in header[:4]:  # version 4, which compresses nothing
            return
        order = "<" if header.endswith(_LITTLE_ENDIAN) else ">"
        while len(tag := file.read(_TAG_BYTES)) == _TAG_BYTES:
            kind, size = struct.unpack(f"{order}2I", tag)
            end = file.tell() + size
            inflater = zlib.decompressobj()
            while kind == _COMPRESSED and file.tell() < end and not inflater.eof:
                packed = file.read(min(_CHUNK, end - file.tell()))
                if not packed:
                    break
                while packed:
                    total += len(inflater.decompress(packed, _CHUNK))
                    packed = inflater.unconsumed_tail
                    if total > most:
                        raise RefusedContent(_TOO_LARGE)
            file.seek(end)


def _to_native(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
