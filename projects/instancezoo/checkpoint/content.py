"""Builds what a pickle recorded, within a bound: no more memory than the file justifies.

A pickle of a few hundred bytes can describe containers that hold one another a billion times, or
texts and tensors that are repeated. Everything that reads a checkpoint later may walk through it,
copy it or write it out. So the content is measured as if each reference were a copy, and one that
is many times larger than its file is refused; so is one that contains itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .safe_pickle import (
    Build,
    DefaultDictMaker,
    DictMaker,
    Foreign,
    Record,
    Recorder,
    RefusedContent,
    RefusedGlobal,
    check_key,
)

# Tied tensors are counted under each of their names, and metadata repeats texts.
_MAX_GROWTH = 4
_ALLOWANCE = 64 * 2**20  # bytes, for small files
_MAX_DEPTH = 64
_MAX_BITS = 4096  # of a number; Python does not even write longer ones
_OBJECT_SIZE = 64  # bytes, about, of a container or a number


class Unsupported:
    """Stands for a tensor of a form that is not read; an error only among a model's weights."""

    def __init__(self, form: str) -> None:
        self.form = form


class Resolver:
    """Replaces recorded calls by their results, and drops foreign objects.

    Args:
        file_size: of the whole file, in bytes.
        source: what the builders of a format need, such as the file's storages.
    """

    def __init__(self, file_size: int, source: Any = None) -> None:
        self.source = source
        self.max_bytes = _MAX_GROWTH * file_size + _ALLOWANCE
        # id -> (value, size, depth below it); None while it is being built
        self._done: dict[int, tuple[Any, int, int] | None] = {}
        self._num_built = 0
        self._depth = 0

    def resolve(self, node: Any) -> Any:
        """Build a part of the content, once.

        Raises:
            RefusedContent: it contains itself, is nested too deeply, or too large for its file.
        """
        return self.visit(node)[0]

    def visit(self, node: Any) -> tuple[Any, int, int]:
        """Build a part of the content. Returns (value, size in bytes, depth below it)."""
        kind = type(node)
        if kind is str or kind is bytes or kind is bytearray:
            return node, _OBJECT_SIZE + len(node), 0
        if kind is int and node.bit_length() > _MAX_BITS:
            raise RefusedContent(f"it holds a number of {node.bit_length()} bits")
        if not isinstance(node, dict | list | tuple | set | frozenset | Record):
            return node, _OBJECT_SIZE, 0
        key = id(node)
        if key in self._done:
            known = self._done[key]
            if known is None:
                raise RefusedContent("it contains itself")
            return known
        self._done[key] = None
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _too_deep()
        result = self._build(node)
        if result[2] > _MAX_DEPTH:
            raise _too_deep()
        self._depth -= 1
        self._done[key] = result
        return result

    def check_size(self, size: int) -> int:
        """Return a size in bytes. Raises `RefusedContent` if it is too large for the file."""
        if size > self.max_bytes:
            raise RefusedContent(
                f"written out, its content would take more than {self.max_bytes / 2**20:.0f} MiB, "
                "many times the size of the file"
            )
        return size

    def _build(self, node: Any) -> tuple[Any, int, int]:
        if isinstance(node, Record):
            value, size = node.build(self, node)
            self._num_built = self.check_size(self._num_built + size)
            depth = self.visit(node.arguments[0])[2] if isinstance(value, dict) else 0
            return value, size + _OBJECT_SIZE, depth
        if isinstance(node, dict):
            return self._build_dict(node)
        values, size, depth = [], _OBJECT_SIZE, 0
        for item in node:
            value, item_size, item_depth = self.visit(item)
            values.append(None if is_foreign(value) else value)
            size, depth = self.check_size(size + item_size), max(depth, item_depth + 1)
        return type(node)(values), size, depth

    def _build_dict(self, node: dict[Any, Any]) -> tuple[Any, int, int]:
        values, size, depth = {}, _OBJECT_SIZE, 0
        for key, item in node.items():
            if is_foreign(key) or is_foreign(item):
                continue
            key, key_size, _ = self.visit(key)
            try:
                value, item_size, item_depth = self.visit(item)
            except RefusedContent as error:
                if not error.name and isinstance(key, str):
                    error.name = key
                raise
            values[key] = value
            size, depth = self.check_size(size + key_size + item_size), max(depth, item_depth + 1)
        return values, size, depth


def measure(tree: Any, file_size: int) -> None:
    """Raise `RefusedContent` for nested containers that are too deep or too large for a file."""
    Resolver(file_size).resolve(tree)


def is_foreign(value: Any) -> bool:
    """Return True for what has no place in a checkpoint's content."""
    return isinstance(value, Foreign | Recorder | type)


def _too_deep() -> RefusedContent:
    return RefusedContent(f"its containers are nested more than {_MAX_DEPTH} deep")


def _build_encoded(resolver: Resolver, record: Record) -> tuple[Any, int]:
    text, encoding = record.arguments
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedGlobal("the file encodes text otherwise than as latin1")
    return text.encode("latin1"), len(text)


def _build_bytes(resolver: Resolver, record: Record) -> tuple[Any, int]:
    """Bytes, which old protocols write as a text and an encoding, or as nothing."""
    if len(record.arguments) > 1:
        return _build_encoded(resolver, record)
    content = resolver.resolve(record.arguments[0]) if record.arguments else b""
    if not isinstance(content, bytes | bytearray):
        raise RefusedContent("it holds bytes that are not bytes")
    return content, len(content)


def _build_dict(resolver: Resolver, record: Record) -> tuple[Any, int]:
    """A dict made of another one, or of pairs as Python 2 wrote an `OrderedDict`."""
    items = record.arguments[0]
    value, size, _ = resolver.visit(items)
    if isinstance(items, dict):
        return value, size
    for key, _ in value:
        check_key(key)
    return dict(value), size


def _build_set(resolver: Resolver, record: Record) -> tuple[Any, int]:
    items, size, _ = resolver.visit(record.arguments[0]) if record.arguments else ([], 0, 0)
    for item in items:
        check_key(item)
    return set(items), size


def _build_complex(resolver: Resolver, record: Record) -> tuple[Any, int]:
    real, imaginary = map(float, record.arguments)
    return complex(real, imaginary), 0


def _name_builtins(builds: Mapping[str, Build]) -> dict[str, Any]:
    modules = ("builtins", "__builtin__")
    return {f"{m}.{name}": Recorder(build) for m in modules for name, build in builds.items()}


# What containers and texts need; arrays and tensors have further names.
PLAIN_NAMES: dict[str, Any] = {
    "_codecs.encode": Recorder(_build_encoded),
    "collections.OrderedDict": DictMaker(_build_dict),
    "collections.Counter": DictMaker(_build_dict),
    "collections.defaultdict": DefaultDictMaker(_build_dict),
    **_name_builtins(
        {
            "bytes": _build_bytes,
            "bytearray": _build_bytes,
            "set": _build_set,
            "complex": _build_complex,
        }
    ),
}
