"""Attributes of a built model, changed for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def attribute_set(parts: Sequence[Any], name: str, value: Any) -> Iterator[None]:
    """Within the block, an attribute of some modules has this value."""
    before = [getattr(part, name) for part in parts]
    for part in parts:
        setattr(part, name, value)
    try:
        yield
    finally:
        for part, old in zip(parts, before, strict=True):
            setattr(part, name, old)
