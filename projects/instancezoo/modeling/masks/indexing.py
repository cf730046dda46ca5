"""Indexing that all mask forms share."""

from __future__ import annotations

from torch import Tensor


def keep_dimension(item: int | slice | Tensor, length: int) -> slice | Tensor:
    """An index that leaves a tensor's first dimension in place, as Detectron2's structures do.

    Raises:
        IndexError: there is no such mask; it ends a `for` loop, too.
    """
    if not isinstance(item, int):
        return item
    if not -length <= item < length:
        raise IndexError(f"no mask {item} among {length}")
    return slice(item, item + 1 or None)
