"""Reads the arrays of a MATLAB file; nothing else in it is looked at."""

from __future__ import annotations

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
    wanted = {
        name: prod(shape) * _SIZES[kind]
        for name, shape, kind in io.whosmat(str(path), appendmat=False)
        if kind in _SIZES
    }
    if sum(wanted.values()) > _MAX_GROWTH * path.stat().st_size + _ALLOWANCE:
        raise RefusedContent("its arrays would take many times the size of the file")
    found = io.loadmat(str(path), appendmat=False, variable_names=list(wanted))
    return {name: _to_native(found[name]) for name in wanted if name in found}


def _to_native(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
