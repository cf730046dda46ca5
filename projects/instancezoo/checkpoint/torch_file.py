"""Reading of torch's two file formats, without its unpickler.

The archive (since torch 1.6) holds a pickle, and each storage as an uncompressed entry. The older
format is a row of pickles, then the storages. In both, a tensor is a recorded call with a storage,
an offset, a shape and strides, which are checked against the bytes that the file holds.
"""

from __future__ import annotations

import io
import mmap
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .arrays import ARRAY_NAMES
from .content import PLAIN_NAMES, Resolver, Unsupported
from .display import show_text
from .safe_pickle import (
    Build,
    Record,
    Recorder,
    RecordingUnpickler,
    RefusedContent,
    RefusedGlobal,
    make_foreign,
)

_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
_MAX_DIMS = 32
_LOCAL_HEADER = 30  # bytes of a zip entry's header before its name
_STORAGES = {
    **{"Double": torch.float64, "Float": torch.float32, "Half": torch.float16},
    **{"BFloat16": torch.bfloat16, "ComplexFloat": torch.complex64, "Bool": torch.bool},
    **{"ComplexDouble": torch.complex128, "Long": torch.int64, "Int": torch.int32},
    **{"Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8, "Untyped": torch.uint8},
    **{"QInt8": torch.qint8, "QUInt8": torch.quint8, "QInt32": torch.qint32},
    **{"QUInt4x2": torch.quint4x2, "QUInt2x4": torch.quint2x4},
}


@dataclass(frozen=True)
class _Storage:
    """A reference to the bytes of tensors.

    Attributes:
        key: of the storage in the file.
        dtype: of its elements.
        size: number of its elements.
        start: its first element, where the file stores it as a part of another one.
    """

    key: str
    dtype: torch.dtype
    size: int
    start: int = 0


class _Storages:
    """The storages of a file, each read once, when the first tensor needs it.

    Args:
        file: open for reading.
        places: key -> (position in the file, number of bytes).
        big_endian: True if the file was written with the other byte order.
    """

    def __init__(
        self, file: BinaryIO, places: dict[str, tuple[int, int]], big_endian: bool = False
    ) -> None:
        self.places = places
        self._file, self._big_endian = file, big_endian
        self._read: dict[str, torch.UntypedStorage] = {}

    def make_tensor(
        self, storage: _Storage, dtype: torch.dtype, offset: int, size: Any, stride: Any
    ) -> Tensor:
        """Make a view of a storage. Raises `RefusedContent` if it reaches beyond the file's bytes.

        Args:
            storage: reference to the bytes.
            dtype: of the tensor, which may differ from the storage's.
            offset: first element.
            size: of each dimension.
            stride: of each dimension, in elements.
        """
        numbers = (storage.size, storage.start, offset, *size, *stride)
        if len(size) != len(stride) or len(size) > _MAX_DIMS or not all(map(_is_size, numbers)):
            raise RefusedContent("a tensor has an impossible shape, stride or offset")
        offset += storage.start
        end = offset + 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        needed = max(storage.size * storage.dtype.itemsize, end * dtype.itemsize * (prod(size) > 0))
        if storage.key not in self.places:
            raise RefusedContent("the bytes of a tensor are not in the file")
        if needed > self.places[storage.key][1]:
            raise RefusedContent(
                f"a tensor of shape {tuple(size)} needs {needed} bytes, but the file holds "
                f"{self.places[storage.key][1]} for it"
            )
        return torch.empty(0, dtype=dtype).set_(self._load(storage), offset, size, stride)

    def _load(self, storage: _Storage) -> torch.UntypedStorage:
        if storage.key not in self._read:
            start, num_bytes = self.places[storage.key]
            content = torch.empty(num_bytes, dtype=torch.uint8)
            self._file.seek(start)
            if self._file.readinto(content.numpy()) != num_bytes:  # type: ignore[attr-defined]
                raise RefusedContent("the file is shorter than it says")
            self._read[storage.key] = content.untyped_storage()
            if self._big_endian:
                self._read[storage.key].byteswap(storage.dtype)
        return self._read[storage.key]


def read_torch_file(path: Path) -> Any:
    """Read a file that `torch.save` wrote, without running what it names.

    Returns:
        Its content: containers, numbers, texts, arrays and tensors on the CPU. Foreign objects are
        dropped; tensors of other forms, such as sparse ones, are `Unsupported`.

    Raises:
        RefusedGlobal: it would run code.
        RefusedContent: it is no checkpoint, or larger in memory than the file justifies.
    """
    with path.open("rb") as file:
        file_size = path.stat().st_size
        if is_archive(path):
            tree, storages = _open_archive(file, file_size)
        else:
            tree, storages = _open_legacy(file, file_size)
        return Resolver(file_size, storages).resolve(tree)


def is_archive(path: Path) -> bool:
    """Return True if a file begins as a zip archive, which is torch's own test."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def check_archive(archive: zipfile.ZipFile) -> None:
    """Raise `RefusedContent` if an archive has compressed entries, which torch never writes."""
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise RefusedContent(
                f"its entry '{show_text(entry.filename)}' is compressed, from {entry.file_size} "
                f"bytes to {entry.compress_size}; torch.save writes uncompressed entries"
            )


def _open_archive(file: BinaryIO, file_size: int) -> tuple[Any, _Storages]:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if any(name.endswith("/constants.pkl") for name in entries):
            raise RefusedGlobal("it is a TorchScript archive, which holds code")
        check_archive(archive)
    pickles = [n for n in entries if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(pickles) != 1:
        raise RefusedContent("it is a zip archive, but not one that torch.save wrote")
    folder = pickles[0].removesuffix("data.pkl")
    prefix = f"{folder}data/"
    chosen = {n: entry for n, entry in entries.items() if n.startswith(prefix)}
    if sum(entry.file_size for entry in chosen.values()) > file_size:
        raise RefusedContent("the entries of the archive overlap")
    places = {
        name.removeprefix(prefix): _find_entry(file, entry, file_size)
        for name, entry in chosen.items()
    }

    def read(name: str) -> bytes:
        start, size = _find_entry(file, entries[name], file_size)
        file.seek(start)
        return file.read(size)

    order = f"{folder}byteorder"
    big_endian = order in entries and read(order) == b"big"
    tree = _unpickle(io.BytesIO(read(pickles[0])), file_size, _make_storage)
    return tree, _Storages(file, places, big_endian)


def _find_entry(file: BinaryIO, entry: zipfile.ZipInfo, file_size: int) -> tuple[int, int]:
    """Find an uncompressed entry's (position, number of bytes)."""
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or not header.startswith(b"PK\x03\x04"):
        raise RefusedContent(f"its entry '{show_text(entry.filename)}' is damaged")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    start = entry.header_offset + _LOCAL_HEADER + lengths
    if start + entry.file_size > file_size:
        raise RefusedContent(f"its entry '{show_text(entry.filename)}' reaches beyond its end")
    return start, entry.file_size


def _open_legacy(file: BinaryIO, file_size: int) -> tuple[Any, _Storages]:
    dtypes: dict[str, torch.dtype] = {}

    def make_storage(pid: Any) -> _Storage:
        storage = _make_storage(pid)
        dtypes.setdefault(storage.key, storage.dtype)
        return storage

    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        magic, version = _unpickle(content, file_size), _unpickle(content, file_size)
        if (type(magic), magic, version) != (int, _LEGACY_MAGIC, _LEGACY_VERSION):
            raise RefusedContent("torch.save did not write it")
        _unpickle(content, file_size)  # the sizes of the writer's C types
        tree = _unpickle(content, file_size, make_storage)
        keys = _unpickle(content, file_size)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise RefusedContent("its list of storages is damaged")
        places: dict[str, tuple[int, int]] = {}
        position = content.tell()
        for key in keys:
            size = int.from_bytes(content[position : position + 8], "little")
            itemsize = dtypes.get(key, torch.uint8).itemsize
            position += 8
            if key in places or position + size * itemsize > file_size:
                raise RefusedContent("it ends before its last tensor")
            places[key] = position, size * itemsize
            position += size * itemsize
    return tree, _Storages(file, places)


def _unpickle(
    file: Any, file_size: int, load_persistent: Callable[[Any], Any] | None = None
) -> Any:
    reader = RecordingUnpickler(file, file_size, TORCH_NAMES, _refuse_name, load_persistent)
    return reader.load()


def _refuse_name(name: str) -> str:
    """Refuse unknown names of the packages whose tensors and containers are known."""
    if name.startswith(("torch.", "collections.", "_codecs.", "builtins.", "__builtin__.")):
        return f"loading it would run code or need classes of other packages ({show_text(name)})"
    return ""


def _make_storage(pid: Any) -> _Storage:
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        raise RefusedGlobal("it holds a whole module, which is code")
    _, dtype, key, _, size, *view = pid
    key = key.decode("ascii") if isinstance(key, bytes) else key
    if not isinstance(dtype, torch.dtype) or not isinstance(key, str):
        raise RefusedContent("a storage of it has no type or no name")
    if view and view[0] is not None:  # (key, offset, size), in files of torch before 0.4
        _, start, size = view[0]
        return _Storage(key, dtype, size, start)
    return _Storage(key, dtype, size)


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**62


def _build_tensor(resolver: Resolver, record: Record) -> tuple[Any, int]:
    storage, offset, size, stride, *_ = record.arguments
    dtype = storage.dtype if isinstance(storage, _Storage) else None
    return _view(resolver, storage, dtype, offset, size, stride)


def _build_tensor_of_type(resolver: Resolver, record: Record) -> tuple[Any, int]:
    storage, offset, size, stride, _, _, dtype, *_ = record.arguments
    return _view(resolver, storage, dtype, offset, size, stride)


def _view(
    resolver: Resolver, storage: Any, dtype: Any, offset: Any, size: Any, stride: Any
) -> tuple[Any, int]:
    if not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype):
        raise RefusedContent("a tensor of it has no storage")
    if str(dtype).startswith("torch.q"):
        return Unsupported("a quantised tensor"), 0
    size, stride = resolver.resolve(size), resolver.resolve(stride)
    tensor = resolver.source.make_tensor(storage, dtype, offset, size, stride)
    return tensor, tensor.numel() * tensor.itemsize


def _build_first(resolver: Resolver, record: Record) -> tuple[Any, int]:
    """A parameter, or a tensor of another device: its first argument is the tensor."""
    value, size, _ = resolver.visit(record.arguments[0])
    if not isinstance(value, Tensor | Unsupported):
        raise RefusedContent("a parameter of it is not a tensor")
    return value, size


def _build_from_array(resolver: Resolver, record: Record) -> tuple[Any, int]:
    array, size, _ = resolver.visit(record.arguments[0])
    return torch.from_numpy(array), size


def _build_from_type(resolver: Resolver, record: Record) -> tuple[Any, int]:
    """A tensor with attributes, which are dropped."""
    function, _, arguments, *_ = record.arguments
    if not isinstance(function, Recorder):
        raise RefusedGlobal("a tensor of it is made by unknown code")
    return function.build(resolver, Record(function.build, arguments))


def _build_size(resolver: Resolver, record: Record) -> tuple[Any, int]:
    values, size, _ = resolver.visit(record.arguments[0])
    return tuple(values), size


def _build_text(resolver: Resolver, record: Record) -> tuple[Any, int]:
    """A `torch.device`, as text."""
    parts = [part for part in record.arguments if isinstance(part, str | int)]
    return ":".join(f"{part}"[:20] for part in parts[:2]), 0


def _refuse_form(form: str) -> Build:
    def build(resolver: Resolver, record: Record) -> tuple[Any, int]:
        return Unsupported(form), 0

    return build


_BUILDS: dict[str, Build] = {
    "torch._utils._rebuild_tensor": _build_tensor,
    "torch._utils._rebuild_tensor_v2": _build_tensor,
    "torch._utils._rebuild_tensor_v3": _build_tensor_of_type,
    "torch._utils._rebuild_parameter": _build_first,
    "torch._utils._rebuild_parameter_with_state": _build_first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _build_first,
    "torch._utils._rebuild_device_tensor_from_numpy": _build_from_array,
    "torch.nn.parameter.Parameter": _build_first,
    "torch._tensor._rebuild_from_type_v2": _build_from_type,
    "torch.Size": _build_size,
    "torch.device": _build_text,
    "torch.serialization._get_layout": _refuse_form("a layout"),
    "torch._utils._rebuild_qtensor": _refuse_form("a quantised tensor"),
    "torch._utils._rebuild_sparse_tensor": _refuse_form("a sparse tensor"),
    "torch._utils._rebuild_nested_tensor": _refuse_form("a nested tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": _refuse_form("a meta tensor without values"),
    "torch._utils._rebuild_wrapper_subclass": _refuse_form("a tensor of another class"),
}
_QUANTISERS = ("per_tensor_affine", "per_tensor_symmetric", "per_channel_affine")
TORCH_NAMES: dict[str, Any] = {
    **PLAIN_NAMES,
    **ARRAY_NAMES,
    **{name: Recorder(build) for name, build in _BUILDS.items()},
    **{f"torch.{n}": v for n, v in vars(torch).items() if isinstance(v, torch.dtype)},
    **{f"{m}.{n}Storage": v for n, v in _STORAGES.items() for m in ("torch", "torch.cuda")},
    "torch.storage.UntypedStorage": torch.uint8,
    "torch.Tensor": make_foreign("torch.Tensor"),
    **{f"torch.{name}": None for name in (*_QUANTISERS, "per_channel_affine_float_qparams")},
}
